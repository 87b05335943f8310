// Load between two network namespaces, for a number of seconds; prints one number per line.
//
//   netload connections SECONDS CLIENT_NETNS SERVER_NETNS IP PORT   TCP connections opened and reset per second
//   netload roundtrip   SECONDS CLIENT_NETNS SERVER_NETNS IP PORT   round trips of 64 bytes over UDP: each in ns
//
// Connections are ended by a reset, so that neither side keeps ports in TIME_WAIT.
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
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct sockaddr_in server = {.sin_family = AF_INET};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void enter(const char *netns) {
    int ns = open(netns, O_RDONLY | O_CLOEXEC);
    if (ns < 0 || setns(ns, CLONE_NEWNET) < 0) fail(netns);
    close(ns);
}

static int listening(int kind) {
    int fd = socket(AF_INET, kind, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&server, sizeof server) < 0) fail("bind");
    if (kind == SOCK_STREAM && listen(fd, 4096) < 0) fail("listen");
    return fd;
}

static void serve_connections(int fd) {
    struct linger reset = {.l_onoff = 1};
    for (;;) {
        int peer = accept(fd, NULL, NULL);
        if (peer < 0) continue;
        setsockopt(peer, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(peer);
    }
}

static void serve_roundtrips(int fd) {
    char text[64];
    struct sockaddr_in from;
    for (;;) {
        socklen_t size = sizeof from;
        ssize_t got = recvfrom(fd, text, sizeof text, 0, (struct sockaddr *)&from, &size);
        if (got > 0) sendto(fd, text, got, 0, (struct sockaddr *)&from, size);
    }
}

static void connections(double seconds) {
    struct linger reset = {.l_onoff = 1};
    int64_t began = now_ns(), end = began + (int64_t)(seconds * 1e9), now = began;
    long made = 0;
    while ((now = now_ns()) < end) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        struct timeval patience = {.tv_sec = 1};
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        if (connect(fd, (struct sockaddr *)&server, sizeof server) == 0) made++;
        close(fd);
    }
    if (!made) exit(1);
    printf("%.1f\n", made / ((now - began) / 1e9));
}

static void roundtrips(double seconds) {
    char text[64] = {0};
    int fd = socket(AF_INET, SOCK_DGRAM, 0), answered = 0;
    struct timeval patience = {.tv_sec = 1};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&server, sizeof server) < 0) fail("connect");
    for (int64_t end = now_ns() + (int64_t)(seconds * 1e9), sent; (sent = now_ns()) < end;) {
        if (send(fd, text, sizeof text, 0) < 0 || recv(fd, text, sizeof text, 0) < 0) continue;
        printf("%lld\n", (long long)(now_ns() - sent));
        answered++;
    }
    if (!answered) exit(1);
}

int main(int argc, char **argv) {
    if (argc != 7) return 2;
    int tcp = !strcmp(argv[1], "connections");
    inet_pton(AF_INET, argv[5], &server.sin_addr);
    server.sin_port = htons(atoi(argv[6]));
    enter(argv[4]);
    int fd = listening(tcp ? SOCK_STREAM : SOCK_DGRAM);
    pid_t child = fork();
    if (child == 0) prctl(PR_SET_PDEATHSIG, SIGKILL), (tcp ? serve_connections : serve_roundtrips)(fd);
    close(fd);
    enter(argv[3]);
    (tcp ? connections : roundtrips)(atof(argv[2]));
    fflush(stdout);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    return 0;
}
