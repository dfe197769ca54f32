// The guest's side of the bench: one static binary, built once on the host, which every guest runs. `flows WHAT ADDRESS PORT LABEL`
// prints `BEGIN LABEL` when it is warm and `END LABEL NUMBERS…` when it is done; times are in nanoseconds of the guest's clock.
// `flows serve` answers on the guest's own loopback address: what TCP costs without any network card.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    SINK = 9001,
    ECHO = 9002,
    REQUEST = 64,
    REQUESTS = 2000,
    CONNECTIONS = 2000,
    AT_ONCE = 32,
    FLOWS = 1000,
    CARRIED = 4096,
};
static const uint64_t SECOND = 1000000000u;
static char buffer[256 << 10];
static const char *label;
static struct sockaddr_in server = {.sin_family = AF_INET};

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static void fail(const char *what) {
    printf("FAILED %s %s: %s\n", label, what, strerror(errno));
    exit(1);
}

static int dial(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    if (fd < 0) fail("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (connect(fd, (struct sockaddr *)&server, sizeof server)) fail("connect");
    return fd;
}

static void send_all(int fd, size_t length) {
    for (size_t sent = 0; sent < length;) {
        ssize_t n = send(fd, buffer, length - sent, MSG_NOSIGNAL);
        if (n <= 0) fail("send");
        sent += (size_t)n;
    }
}

static void receive_all(int fd, size_t length) {
    for (size_t got = 0; got < length;) {
        ssize_t n = recv(fd, buffer, length - got, 0);
        if (n <= 0) fail("receive");
        got += (size_t)n;
    }
}

// Moves bytes for so long; returns how many.
static uint64_t move(int fd, int up, uint64_t length) {
    uint64_t begun = now(), bytes = 0;
    while (now() - begun < length) {
        ssize_t n = up ? send(fd, buffer, sizeof buffer, MSG_NOSIGNAL) : recv(fd, buffer, sizeof buffer, 0);
        if (n <= 0) fail(up ? "send" : "receive");
        bytes += (uint64_t)n;
    }
    return bytes;
}

static void bulk(int up) {
    int fd = dial();
    move(fd, up, SECOND);
    printf("BEGIN %s\n", label);
    uint64_t begun = now(), bytes = move(fd, up, 3 * SECOND);
    printf("END %s %lu %lu\n", label, bytes, now() - begun);
    struct linger reset = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(fd);
}

static int ascending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

// One after the other on one flow.
static void requests(void) {
    static uint64_t took[REQUESTS];
    int fd = dial();
    for (int i = -100; i < REQUESTS; i++) {
        if (i == 0) printf("BEGIN %s\n", label);
        uint64_t begun = now();
        send_all(fd, REQUEST);
        receive_all(fd, REQUEST);
        if (i >= 0) took[i] = now() - begun;
    }
    qsort(took, REQUESTS, sizeof *took, ascending);
    printf("END %s %d %lu %lu\n", label, REQUESTS, took[REQUESTS / 2], took[REQUESTS * 99 / 100]);
    close(fd);
}

static void begin_connection(int poll) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0) fail("socket");
    if (connect(fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS) fail("connect");
    struct epoll_event event = {.events = EPOLLOUT, .data.fd = fd};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
}

// Each with one request, some at a time.
static void connections(void) {
    int poll = epoll_create1(0), begun = 0, done = 0;
    printf("BEGIN %s\n", label);
    uint64_t start = now();
    for (; begun < AT_ONCE; begun++) begin_connection(poll);
    while (done < CONNECTIONS) {
        struct epoll_event events[AT_ONCE];
        int count = epoll_wait(poll, events, AT_ONCE, 60000);
        if (count <= 0) fail("wait");
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (!(events[i].events & EPOLLIN)) {
                send_all(fd, REQUEST);
                struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
                epoll_ctl(poll, EPOLL_CTL_MOD, fd, &event);
                continue;
            }
            // So short an answer comes whole.
            receive_all(fd, REQUEST);
            close(fd);
            done++;
            if (begun < CONNECTIONS) {
                begin_connection(poll);
                begun++;
            }
        }
    }
    printf("END %s %d %lu\n", label, done, now() - start);
    close(poll);
}

static void carry(int fd) {
    send_all(fd, CARRIED);
    receive_all(fd, CARRIED);
}

// Flows that have carried something each way, held until the gate's connection ends.
static void idle(int gate_port) {
    static int flows[FLOWS];
    uint16_t port = server.sin_port;
    for (int i = 0; i < 20; i++) {
        int fd = dial();
        carry(fd);
        close(fd);
    }
    server.sin_port = htons((uint16_t)gate_port);
    int gate = dial();
    server.sin_port = port;
    printf("BEGIN %s\n", label);
    sleep(3);
    for (int i = 0; i < FLOWS; i++) carry(flows[i] = dial());
    printf("END %s %d\n", label, FLOWS);
    (void)!recv(gate, buffer, 1, 0);
    int open = 0;
    for (int i = 0; i < FLOWS; i++) {
        ssize_t n = recv(flows[i], buffer, 1, MSG_DONTWAIT);
        open += n < 0 && errno == EAGAIN;
    }
    printf("HELD %d\n", open);
}

static void serve(uint16_t port, int answers) {
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(port)};
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&own, sizeof own) || listen(listener, 64)) fail("listen");
    if (fork()) return;
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fork()) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        ssize_t n;
        while ((n = recv(fd, buffer, sizeof buffer, 0)) > 0)
            if (answers) send_all(fd, (size_t)n);
        exit(0);
    }
}

int main(int count, char **arguments) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGCHLD, SIG_IGN);
    label = arguments[1];
    if (count == 2 && !strcmp(arguments[1], "serve")) {
        serve(SINK, 0);
        serve(ECHO, 1);
        return 0;
    }
    if (count < 5) return 2;
    const char *what = arguments[1];
    label = arguments[4];
    server.sin_port = htons((uint16_t)atoi(arguments[3]));
    if (inet_pton(AF_INET, arguments[2], &server.sin_addr) != 1) fail("address");
    if (!strcmp(what, "up")) bulk(1);
    else if (!strcmp(what, "down")) bulk(0);
    else if (!strcmp(what, "requests")) requests();
    else if (!strcmp(what, "connections")) connections();
    else if (!strcmp(what, "idle") && count == 6) idle(atoi(arguments[5]));
    else return 2;
    return 0;
}
