// Load between pairs of network namespaces, one pair after the other, whichever standard input asks for.
//
//   netload connections IP PORT CLIENT_NETNS SERVER_NETNS [CLIENT_NETNS SERVER_NETNS ...]
//       TCP connections opened and reset, per second; processor time of the client for each, in ns
//   netload packets ...     packets with 64 bytes of UDP that arrive, per second; processor time of the client for each
//                           that is sent, in ns
//   netload roundtrip ...   64 bytes of UDP there and back: median, p99 in ns
//
// A line on standard input is the number of a pair, from 0 on, and seconds; the answer is a line with two figures. The
// program ends with its input, or with status 1 where nothing came through in several attempts: one can be lost, a
// first SYN is sent again after a second only.
//
// All servers stand ready from the beginning and cost nothing while they wait, so a turn may be short: what else the
// machine does then hits all pairs alike. The first part of each turn is not counted: caches are filled with what this
// pair needs. Connections are ended by a reset, so that neither side keeps ports in TIME_WAIT. Client and servers have
// a processor each: the kernel forwards on the one that sends, so what the client's does is what is measured. What the
// kernel does for a packet is for the most part done in the client's own system call, so the client's processor time
// tells what a rule costs even where other programs take turns with it.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BYTES = 64, BATCH = 32, MAX_ROUNDTRIPS = 1 << 20, BUFFER = 8 << 20, PATIENCE_NS = 1000000000, ATTEMPTS = 5 };
static const double WARM_UP = 0.2;  // of the counted time, before it

static struct sockaddr_in server = {.sin_family = AF_INET};
static volatile long *received;  // by the server of each pair, shared with the client

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int64_t processor_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

struct figures {
    double first, second;
};

static int opened(const char *netns) {
    int ns = open(netns, O_RDONLY | O_CLOEXEC);
    if (ns < 0) fail(netns);
    return ns;
}

static void enter(int netns) {
    if (setns(netns, CLONE_NEWNET) < 0) fail("setns");
}

static void pin(int processor) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor % (int)sysconf(_SC_NPROCESSORS_ONLN), &set);
    sched_setaffinity(0, sizeof set, &set);
}

static void patience(int fd, int option) {
    struct timeval a_second = {.tv_sec = 1};
    setsockopt(fd, SOL_SOCKET, option, &a_second, sizeof a_second);
}

static int listening(int kind) {
    int fd = socket(AF_INET, kind, 0), on = 1, bytes = BUFFER;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes);
    if (bind(fd, (struct sockaddr *)&server, sizeof server) < 0) fail("bind");
    if (kind == SOCK_STREAM && listen(fd, 4096) < 0) fail("listen");
    return fd;
}

static int connected(void) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (connect(fd, (struct sockaddr *)&server, sizeof server) < 0) fail("connect");
    return fd;
}

static void serve_connections(int fd, int pair) {
    (void)pair;
    struct linger reset = {.l_onoff = 1};
    for (;;) {
        int peer = accept(fd, NULL, NULL);
        if (peer < 0) continue;
        setsockopt(peer, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(peer);
    }
}

static struct figures connections(double seconds, int pair) {
    (void)pair;
    struct linger reset = {.l_onoff = 1};
    int64_t began = now_ns(), end = began + (int64_t)(seconds * 1e9), now = began;
    int64_t used_ns = processor_ns();
    long made = 0;
    while ((now = now_ns()) < end) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        patience(fd, SO_SNDTIMEO);
        if (connect(fd, (struct sockaddr *)&server, sizeof server) == 0) made++;
        close(fd);
    }
    if (!made) return (struct figures){0};
    return (struct figures){made / ((now - began) / 1e9), (double)(processor_ns() - used_ns) / made};
}

static void batch(struct mmsghdr *messages, struct iovec *parts, char (*texts)[BYTES]) {
    for (int index = 0; index < BATCH; index++) {
        parts[index] = (struct iovec){.iov_base = texts[index], .iov_len = BYTES};
        messages[index] = (struct mmsghdr){.msg_hdr = {.msg_iov = &parts[index], .msg_iovlen = 1}};
    }
}

static void serve_packets(int fd, int pair) {
    struct mmsghdr messages[BATCH];
    struct iovec parts[BATCH];
    char texts[BATCH][BYTES];
    batch(messages, parts, texts);
    for (;;) {
        int got = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
        if (got > 0) received[pair] += got;
    }
}

static struct figures packets(double seconds, int pair) {
    struct mmsghdr messages[BATCH];
    struct iovec parts[BATCH];
    char texts[BATCH][BYTES] = {{0}};
    batch(messages, parts, texts);
    int fd = connected();
    int64_t began = now_ns(), end = began + (int64_t)(seconds * 1e9), now;
    int64_t used_ns = processor_ns();
    long sent = 0, before = received[pair], got;
    while ((now = now_ns()) < end) {
        int count = sendmmsg(fd, messages, BATCH, 0);
        if (count > 0) sent += count;
    }
    used_ns = processor_ns() - used_ns;
    while (!(got = received[pair] - before) && now_ns() < end + PATIENCE_NS) usleep(100);  // a server that was asleep
    close(fd);
    if (!got) return (struct figures){0};
    return (struct figures){got / ((now - began) / 1e9), (double)used_ns / sent};
}

static void serve_roundtrips(int fd, int pair) {
    (void)pair;
    char text[BYTES];
    struct sockaddr_in from;
    for (;;) {
        socklen_t size = sizeof from;
        ssize_t got = recvfrom(fd, text, sizeof text, 0, (struct sockaddr *)&from, &size);
        if (got > 0) sendto(fd, text, got, 0, (struct sockaddr *)&from, size);
    }
}

static int ascending(const void *one, const void *other) {
    int64_t a = *(const int64_t *)one, b = *(const int64_t *)other;
    return (a > b) - (a < b);
}

static struct figures roundtrips(double seconds, int pair) {
    (void)pair;
    static int64_t took_ns[MAX_ROUNDTRIPS];
    char text[BYTES] = {0};
    int fd = connected(), answered = 0;
    patience(fd, SO_RCVTIMEO);
    for (int64_t end = now_ns() + (int64_t)(seconds * 1e9), sent; (sent = now_ns()) < end && answered < MAX_ROUNDTRIPS;) {
        if (send(fd, text, sizeof text, 0) < 0 || recv(fd, text, sizeof text, 0) < 0) continue;
        took_ns[answered++] = now_ns() - sent;
    }
    close(fd);
    if (!answered) return (struct figures){0};
    qsort(took_ns, answered, sizeof took_ns[0], ascending);
    return (struct figures){took_ns[answered / 2], took_ns[(int64_t)answered * 99 / 100]};
}

static const struct load {
    const char *name;
    int kind;
    void (*serve)(int fd, int pair);
    struct figures (*run)(double seconds, int pair);
} LOADS[] = {
    {"connections", SOCK_STREAM, serve_connections, connections},
    {"packets", SOCK_DGRAM, serve_packets, packets},
    {"roundtrip", SOCK_DGRAM, serve_roundtrips, roundtrips},
};

// A server in the namespace; it ends with the client.
static void served(const struct load *load, int netns, int pair) {
    enter(netns);
    int fd = listening(load->kind);
    pid_t child = fork();
    if (child < 0) fail("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pin(1);
        load->serve(fd, pair);
    }
    close(fd);
}

int main(int argc, char **argv) {
    if (argc < 6 || argc % 2) return 2;
    const struct load *load = NULL;
    for (size_t index = 0; index < sizeof LOADS / sizeof LOADS[0]; index++)
        if (!strcmp(argv[1], LOADS[index].name)) load = &LOADS[index];
    if (!load || inet_pton(AF_INET, argv[2], &server.sin_addr) != 1) return 2;
    server.sin_port = htons(atoi(argv[3]));
    int pairs = (argc - 4) / 2, clients[pairs], pair;
    size_t bytes = pairs * sizeof *received;
    received = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (received == MAP_FAILED) fail("mmap");
    for (pair = 0; pair < pairs; pair++) {
        clients[pair] = opened(argv[4 + 2 * pair]);
        served(load, opened(argv[5 + 2 * pair]), pair);
    }
    pin(0);
    double seconds;
    while (scanf("%d %lf", &pair, &seconds) == 2 && pair >= 0 && pair < pairs) {
        enter(clients[pair]);
        struct figures found = {0};
        for (int attempt = 0; attempt < ATTEMPTS && !found.first; attempt++) {
            load->run(seconds * WARM_UP, pair);
            found = load->run(seconds, pair);
        }
        if (!found.first) return 1;
        printf("%.1f %.1f\n", found.first, found.second);
        fflush(stdout);
    }
    return 0;
}
