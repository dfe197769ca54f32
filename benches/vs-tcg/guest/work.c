// The measured loops. One static binary, built once on the host, runs natively, in our guest and in QEMU's, so that every
// row compares the same instructions. Prints one line: NAME NANOSECONDS.
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static volatile uint64_t sink;

// Integer: a sieve, a hash and calls that return.
static uint64_t fib(unsigned n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

static void integer(void) {
    static uint8_t composite[1 << 20];
    uint64_t hash = 0xcbf29ce484222325u;
    for (int round = 0; round < 20; round++) {
        memset(composite, 0, sizeof composite);
        for (uint32_t i = 2; i * i < sizeof composite; i++)
            if (!composite[i])
                for (uint32_t j = i * i; j < sizeof composite; j += i) composite[j] = 1;
        for (uint32_t i = 0; i < sizeof composite; i++) hash = (hash ^ composite[i]) * 0x100000001b3u;
    }
    sink = hash + fib(38);
}

// Memory: a random walk over 8 MiB and copies.
static void memory(void) {
    enum { N = 1 << 20 };
    static uint64_t next[N];
    static uint8_t copy[sizeof next];
    for (uint64_t i = 0; i < N; i++) next[i] = (i * 1103515245u + 12345u) & (N - 1);
    uint64_t at = 0;
    for (int i = 0; i < 4000000; i++) at = next[at] ^ (i & 1);
    for (int i = 0; i < 20; i++) {
        memcpy(copy, next, sizeof next);
        at += copy[i];
    }
    sink = at;
}

// Floating point: a matrix product in double precision.
static void floating(void) {
    enum { N = 512 };
    static double a[N][N], b[N][N], c[N][N];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) a[i][j] = i + j * 0.5, b[i][j] = i - j * 0.25;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            double s = 0;
            for (int k = 0; k < N; k++) s += a[i][k] * b[k][j];
            c[i][j] = s;
        }
    sink = (uint64_t)c[N - 1][N - 1];
}

// 1,000 x fork + exec + wait of this binary, which does nothing.
static void spawn(const char *self) {
    for (int i = 0; i < 1000; i++) {
        pid_t child = fork();
        if (child == 0) {
            execl(self, self, "nothing", (char *)0);
            _exit(127);
        }
        int status;
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
            fprintf(stderr, "a child failed\n");
            exit(1);
        }
    }
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "nothing")) return 0;
    uint64_t start = now();
    if (!strcmp(what, "integer")) integer();
    else if (!strcmp(what, "memory")) memory();
    else if (!strcmp(what, "floating")) floating();
    else if (!strcmp(what, "spawn")) spawn("/proc/self/exe");
    else {
        fprintf(stderr, "usage: work integer|memory|floating|spawn\n");
        return 2;
    }
    printf("%s %llu\n", what, (unsigned long long)(now() - start));
    return 0;
}
