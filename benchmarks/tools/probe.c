// One UDP flow between two network namespaces, from which one learns when it was let through and when not.
//
//   probe INTERVAL_US FROM_NETNS FROM_IP TO_NETNS TO_IP PORT
//
// Sends a numbered packet every INTERVAL_US microseconds. Between namespaces of one machine a packet that arrives has
// arrived when the next one but LATE is sent, so no timer is needed to call one lost. Prints one line at every change,
// with the moment (CLOCK_MONOTONIC, ns) at which the first packet of the new kind was sent: `up NS` or `down NS`.
// Reads `count` on standard input and answers `count SENT ARRIVED LONGEST_SILENCE_NS`, since the previous count.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { RING = 1 << 12, LATE = 8 };

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int udp_socket(const char *netns, const char *ip, int port) {
    int ns = open(netns, O_RDONLY | O_CLOEXEC);
    if (ns < 0 || setns(ns, CLONE_NEWNET) < 0) fail(netns);
    close(ns);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, ip, &at.sin_addr) != 1 || bind(fd, (struct sockaddr *)&at, sizeof at) < 0) fail(ip);
    return fd;
}

int main(int argc, char **argv) {
    if (argc != 7) return 2;
    int64_t interval_ns = atoll(argv[1]) * 1000;
    int port = atoi(argv[6]);
    int in = udp_socket(argv[4], argv[5], port), out = udp_socket(argv[2], argv[3], port);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, argv[5], &to.sin_addr);
    if (connect(out, (struct sockaddr *)&to, sizeof to) < 0) fail("connect");

    static int64_t sent_ns[RING];
    static char arrived[RING];
    uint64_t next = 0, judged = 0, sent = 0, got = 0;
    int64_t due_ns = now_ns(), heard_ns = due_ns, silence_ns = 0;
    int state = -1;
    for (;;) {
        sent_ns[next % RING] = now_ns();
        arrived[next % RING] = 0;
        // A refusal of an earlier packet may be reported here; this one counts as not let through.
        if (send(out, &next, sizeof next, MSG_DONTWAIT) == sizeof next) sent++;
        next++;
        uint64_t number;
        while (recv(in, &number, sizeof number, MSG_DONTWAIT) == sizeof number) {
            if (next - number >= RING) continue;
            arrived[number % RING] = 1;
            got++;
            int64_t at = now_ns();
            if (at - heard_ns > silence_ns) silence_ns = at - heard_ns;
            heard_ns = at;
        }
        for (; judged + LATE < next; judged++) {
            int up = arrived[judged % RING];
            if (up == state) continue;
            state = up;
            printf("%s %lld\n", up ? "up" : "down", (long long)sent_ns[judged % RING]);
            fflush(stdout);
        }
        due_ns += interval_ns;
        int64_t wait_ns = due_ns - now_ns();
        if (wait_ns < 0) due_ns -= wait_ns, wait_ns = 0;  // we were held up: no burst to catch up
        struct pollfd asked = {.fd = 0, .events = POLLIN};
        struct timespec pause = {.tv_nsec = wait_ns};
        if (ppoll(&asked, 1, &pause, NULL) > 0) {
            char line[64];
            if (read(0, line, sizeof line) <= 0) return 0;
            int64_t at = now_ns();
            if (at - heard_ns > silence_ns) silence_ns = at - heard_ns;
            printf("count %llu %llu %lld\n", (unsigned long long)sent, (unsigned long long)got, (long long)silence_ns);
            fflush(stdout);
            sent = got = 0, silence_ns = 0, heard_ns = at;
        }
    }
}
