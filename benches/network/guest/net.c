// What a whole guest's network does, from inside: `net ADDRESS SINK SOURCE ECHO WHAT`. Prints lines `ROW NAME VALUE`.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { REQUEST = 64, REQUESTS = 2000, CONNECTIONS = 200, PROCESSES = 4, FLOWS = 1000, CARRIED = 4096, SECONDS = 5 };

static struct sockaddr_in server;
static char buffer[1 << 18];

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void fail(const char *what) {
    printf("ROW-FAILED ");
    fflush(stdout);
    perror(what);
    exit(1);
}

static int to(int port) {
    int s = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    server.sin_port = htons(port);
    if (s < 0 || connect(s, (struct sockaddr *)&server, sizeof server)) fail("connect");
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return s;
}

// A request of so many bytes and its answer.
static void exchange(int s, size_t size) {
    if (write(s, buffer, size) != (ssize_t)size) fail("write");
    for (size_t have = 0; have < size;) {
        ssize_t n = read(s, buffer, size - have);
        if (n <= 0) fail("read");
        have += n;
    }
}

static void rate(const char *name, uint64_t bytes, uint64_t start) {
    // Kilobits a second.
    printf("ROW %s %llu\n", name, (unsigned long long)(bytes * 8 * 1000000 / (now() - start)));
}

static void up(int port) {
    int s = to(port);
    uint64_t start = now(), bytes = 0;
    while (now() - start < SECONDS * 1000000000ull) {
        ssize_t n = write(s, buffer, sizeof buffer);
        if (n <= 0) fail("write");
        bytes += n;
    }
    // The server says goodbye once it has read everything.
    shutdown(s, SHUT_WR);
    while (read(s, buffer, sizeof buffer) > 0) {}
    rate("up", bytes, start);
    close(s);
}

static void down(int port) {
    int s = to(port);
    uint64_t start = now(), bytes = 0;
    while (now() - start < SECONDS * 1000000000ull) {
        ssize_t n = read(s, buffer, sizeof buffer);
        if (n <= 0) fail("read");
        bytes += n;
    }
    rate("down", bytes, start);
    close(s);
}

static int order(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void requests(int port) {
    static uint64_t took[REQUESTS];
    int s = to(port);
    memset(buffer, 1, REQUEST);
    for (int i = 0; i < 100; i++) exchange(s, REQUEST);
    for (int i = 0; i < REQUESTS; i++) {
        uint64_t start = now();
        exchange(s, REQUEST);
        took[i] = now() - start;
    }
    qsort(took, REQUESTS, sizeof *took, order);
    printf("ROW p50 %llu\nROW p99 %llu\n", (unsigned long long)took[REQUESTS / 2],
           (unsigned long long)took[REQUESTS * 99 / 100]);
    close(s);
}

static void connections(int port) {
    uint64_t start = now();
    for (int i = 0; i < PROCESSES; i++)
        if (fork() == 0) {
            memset(buffer, 1, REQUEST);
            for (int j = 0; j < CONNECTIONS; j++) {
                int s = to(port);
                exchange(s, REQUEST);
                close(s);
            }
            _exit(0);
        }
    int status, good = 1;
    while (wait(&status) > 0) good &= status == 0;
    if (!good) fail("a child");
    printf("ROW connections %llu\n", (unsigned long long)(PROCESSES * CONNECTIONS * 1000000000000ull / (now() - start)));
}

static void idle(int port) {
    struct rlimit files = {FLOWS + 64, FLOWS + 64};
    if (setrlimit(RLIMIT_NOFILE, &files)) fail("setrlimit");
    memset(buffer, 1, CARRIED);
    sleep(3);
    printf("ROW-BEFORE\n");
    fflush(stdout);
    for (int i = 0; i < FLOWS; i++) exchange(to(port), CARRIED);
    sleep(3);
    printf("ROW-AFTER\n");
    fflush(stdout);
    sleep(2);
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    server.sin_family = AF_INET;
    if (inet_pton(AF_INET, argv[1], &server.sin_addr) != 1) return 2;
    const char *what = argv[5];
    if (!strcmp(what, "up")) up(atoi(argv[2]));
    else if (!strcmp(what, "down")) down(atoi(argv[3]));
    else if (!strcmp(what, "requests")) requests(atoi(argv[4]));
    else if (!strcmp(what, "connections")) connections(atoi(argv[4]));
    else if (!strcmp(what, "idle")) idle(atoi(argv[4]));
    else return 2;
    return 0;
}
