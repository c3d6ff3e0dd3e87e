/* The lab guest's workload: writes what lets any copy of its disks be judged by itself.
 *
 * Records. Record n = 1, 2, 3, ... is one block of 4 KiB, written with O_DIRECT and O_DSYNC, so that record n+1 is not
 * begun before n is stable. It goes to disk n mod (number of disks), at slot mix(n ^ seed) mod (number of slots). So with
 * K the highest n on the disks, every slot of every disk must hold exactly the last n <= K that maps to it: a strict
 * prefix, across disks. A copy that mixes two moments, of one disk or of several, breaks this.
 *
 *   word    0       1   2      3                    4         5     6                        7      8 .. 511
 *           magic   n   slot   disk | disks << 32   time, ns  boot  checksum (0 for itself)  seed   mix(seed + n * 512 + word)
 *
 * All words are little-endian, 64 bits. The checksum is the sum of mix(word + index * GOLDEN) over all words.
 *
 * Churn. A file system on each disk, where files are written, synced, renamed into place and deleted. Each carries the
 * checksum of its own content, so that a half-written one is found, whatever e2fsck says.
 *
 * What it prints: SS-BOOT n=<last record found> ; SS-FIRST n=<first of this boot> ; SS-AT n=<n> first=<first> each
 * second ; SS-LAST n=<n> when the power button was pressed ; SS-CHECK ok|bad n=<n> bad=<slots> each second with
 * ss.check=1, which writes nothing ; SS-ERROR <what> when something fails.
 *
 * Causes and effects. With ss.say=1 it prints SS-DID n=<n> once record n is stable. With ss.follow=1 it writes record n only after a
 * line on its console has named n or a higher number. So if one guest follows what another one said, its last record is never
 * higher than the other's, in any copy of both that is one moment. It says SS-FOLLOW each second until it is told.
 *
 * How long a record takes. With ss.latency=<s> it prints, every so many seconds, SS-LATENCY n=<records> p50=<us> p99=<us> max=<us>
 * of the time from each record's write until it was stable, in that span.
 *
 * From the kernel's command line: ss.rate=<records a second> ss.churn=<files a second> ss.check=<0|1> ss.say=<0|1> ss.follow=<0|1>
 * ss.latency=<s, 0 is off>.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096
#define WORDS (BLOCK / 8)
#define CHUNK (1 << 20)
#define LABEL_OFFSET (512 << 10)
#define LABEL_MAGIC 0x31304c4142414c53ull  /* "SLABAL01" */
#define RECORD_MAGIC 0x3130434552425353ull /* "SSBREC01" */
#define GOLDEN 0x9e3779b97f4a7c15ull
#define DISKS_MAX 16
#define BUTTONS_MAX 16
#define FILES 64
#define SECOND 1000000000ull

enum { MAGIC, N, SLOT, DISK, TIME, BOOT, CHECKSUM, SEED, PAYLOAD };

struct disk {
    char name[16];
    int fd;
    uint64_t offset, slots;
};

static struct disk disks[DISKS_MAX];
static uint64_t disk_count, seed;
static struct pollfd buttons[BUTTONS_MAX];
static int button_count;

static uint64_t mix(uint64_t x) { /* splitmix64's finaliser */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static uint64_t now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static void say(const char *what, const char *which) {
    printf("SS-ERROR %s %s: %s\n", what, which, strerror(errno));
}

static uint64_t setting(const char *name, uint64_t otherwise) {
    char line[4096] = " ", key[64];
    int fd = open("/proc/cmdline", O_RDONLY);
    ssize_t length = read(fd, line + 1, sizeof line - 2);
    close(fd);
    line[length > 0 ? length + 1 : 1] = 0;
    snprintf(key, sizeof key, " ss.%s=", name);
    char *found = strstr(line, key);
    return found ? strtoull(found + strlen(key), NULL, 10) : otherwise;
}

static uint64_t checksum(const uint64_t *record) {
    uint64_t sum = 0;
    for (int i = 0; i < WORDS; i++) sum += mix((i == CHECKSUM ? 0 : record[i]) + (uint64_t)i * GOLDEN);
    return sum;
}

static uint64_t slot_of(uint64_t n, const struct disk *disk) { return mix(n ^ seed) % disk->slots; }

static void fill(uint64_t *record, uint64_t n, uint64_t boot) {
    uint64_t number = n % disk_count;
    record[MAGIC] = RECORD_MAGIC;
    record[N] = n;
    record[SLOT] = slot_of(n, &disks[number]);
    record[DISK] = number | disk_count << 32;
    record[TIME] = now(CLOCK_REALTIME);
    record[BOOT] = boot;
    record[SEED] = seed;
    for (int i = PAYLOAD; i < WORDS; i++) record[i] = mix(seed + n * WORDS + (uint64_t)i);
    record[CHECKSUM] = checksum(record);
}

/* Whether this is record n, whole and in its place. */
static int holds(const uint64_t *record, uint64_t n, uint64_t number, uint64_t slot) {
    if (n == 0) {
        for (int i = 0; i < WORDS; i++)
            if (record[i]) return 0;
        return 1;
    }
    if (record[MAGIC] != RECORD_MAGIC || record[N] != n || record[SLOT] != slot || record[SEED] != seed) return 0;
    if (record[DISK] != (number | disk_count << 32) || record[CHECKSUM] != checksum(record)) return 0;
    for (int i = PAYLOAD; i < WORDS; i++)
        if (record[i] != mix(seed + n * WORDS + (uint64_t)i)) return 0;
    return 1;
}

static int find_disks(uint64_t *buffer) {
    uint64_t found = 0;
    for (char letter = 'a'; letter <= 'z'; letter++) {
        char path[16];
        snprintf(path, sizeof path, "/dev/vd%c", letter);
        int fd = open(path, O_RDWR | O_DIRECT | O_DSYNC);
        if (fd < 0) continue;
        if (pread(fd, buffer, BLOCK, LABEL_OFFSET) != BLOCK || buffer[0] != LABEL_MAGIC || buffer[3] >= DISKS_MAX) {
            close(fd);
            continue;
        }
        struct disk *disk = &disks[buffer[3]];
        snprintf(disk->name, sizeof disk->name, "%s", path);
        disk->fd = fd;
        disk->offset = buffer[1];
        disk->slots = buffer[2];
        disk_count = buffer[4];
        seed = buffer[5];
        found++;
    }
    return found && found == disk_count;
}

/* Call `visit` for each slot of each disk, in order. */
static int for_each_slot(uint64_t *buffer, void (*visit)(const uint64_t *, uint64_t, uint64_t)) {
    for (uint64_t number = 0; number < disk_count; number++) {
        struct disk *disk = &disks[number];
        for (uint64_t first = 0; first < disk->slots; first += CHUNK / BLOCK) {
            uint64_t count = disk->slots - first < CHUNK / BLOCK ? disk->slots - first : CHUNK / BLOCK;
            if (pread(disk->fd, buffer, count * BLOCK, (off_t)(disk->offset + first * BLOCK)) != (ssize_t)(count * BLOCK)) {
                say("read", disk->name);
                return 0;
            }
            for (uint64_t i = 0; i < count; i++) visit(buffer + i * WORDS, number, first + i);
        }
    }
    return 1;
}

static uint64_t last, bad, *expected[DISKS_MAX];

static void visit_for_last(const uint64_t *record, uint64_t number, uint64_t slot) {
    if (record[MAGIC] == RECORD_MAGIC && record[SEED] == seed && record[SLOT] == slot && record[N] % disk_count == number
        && record[N] > last)
        last = record[N];
}

static void visit_to_check(const uint64_t *record, uint64_t number, uint64_t slot) {
    bad += !holds(record, expected[number][slot], number, slot);
}

static void find_buttons(void) {
    for (int i = 0; i < BUTTONS_MAX; i++) {
        char path[32];
        snprintf(path, sizeof path, "/dev/input/event%d", i);
        int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        if (fd >= 0) buttons[button_count++] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
}

static volatile sig_atomic_t stopping;
static void stop(int number) { stopping = number; }

/* SIGTERM is as good as the power button: so the agent shuts the guest down, and the workload its churn. */
static void expect_stop(void) {
    struct sigaction action = {.sa_handler = stop}; /* no SA_RESTART: it interrupts the sleep */
    sigaction(SIGTERM, &action, NULL);
    FILE *file = fopen("/tmp/workload.pid", "w");
    if (!file) return;
    fprintf(file, "%d\n", getpid());
    fclose(file);
}

/* Sleep until `deadline` (monotonic, ns) or until the power button is pressed; say which. */
static int pressed_before(uint64_t deadline) {
    for (;;) {
        uint64_t t = now(CLOCK_MONOTONIC), left = deadline > t ? deadline - t : 0;
        struct timespec wait = {.tv_sec = (time_t)(left / SECOND), .tv_nsec = (long)(left % SECOND)};
        if (ppoll(buttons, (nfds_t)button_count, &wait, NULL) <= 0) return stopping != 0;
        for (int i = 0; i < button_count; i++) {
            struct input_event event;
            while (read(buttons[i].fd, &event, sizeof event) == sizeof event)
                if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1) return 1;
        }
    }
}

/* Judges the disks, and says so each second: a line may stay in the serial port until the next one is written. */
static void check(uint64_t *buffer) {
    for (uint64_t i = 0; i < disk_count; i++) expected[i] = calloc(disks[i].slots, sizeof(uint64_t));
    for (uint64_t n = 1; n <= last; n++) expected[n % disk_count][slot_of(n, &disks[n % disk_count])] = n;
    if (!for_each_slot(buffer, visit_to_check)) return;
    do printf("SS-CHECK %s n=%lu bad=%lu\n", bad ? "bad" : "ok", last, bad);
    while (!pressed_before(now(CLOCK_MONOTONIC) + SECOND));
}

static void churn_once(const char *folder, uint64_t c) {
    static uint64_t data[8192];
    char temporary[64], path[64];
    uint64_t words = 8 + mix(c) % (8192 - 8), sum = 0;
    data[0] = c;
    data[1] = words;
    for (uint64_t i = 3; i < words; i++) data[i] = mix(seed + c * 8192 + i);
    for (uint64_t i = 0; i < words; i++) sum += mix((i == 2 ? 0 : data[i]) + i * GOLDEN);
    data[2] = sum;
    snprintf(temporary, sizeof temporary, "%s/new", folder);
    snprintf(path, sizeof path, "%s/file-%02lu", folder, c % FILES);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || write(fd, data, words * 8) != (ssize_t)(words * 8) || fsync(fd) || close(fd) || rename(temporary, path)) {
        say("churn", path);
        sleep(1);
        return;
    }
    if (c % 8 == 7) { /* deletions give blocks back: with the mount option discard, the disk gets trimmed */
        snprintf(path, sizeof path, "%s/file-%02lu", folder, (c + FILES / 2) % FILES);
        unlink(path);
    }
}

static pid_t start_churn(uint64_t rate) {
    pid_t child = fork();
    if (child != 0) return child;
    struct timespec pause = {.tv_sec = (time_t)(1 / rate), .tv_nsec = rate > 1 ? (long)(SECOND / rate) : 0};
    for (uint64_t c = now(CLOCK_REALTIME) / 1000000; !stopping; c++) {
        char folder[32];
        snprintf(folder, sizeof folder, "/mnt/%lu/churn", c % disk_count);
        churn_once(folder, c / disk_count);
        nanosleep(&pause, NULL);
    }
    _exit(0);
}

static void mount_all(void) {
    for (uint64_t i = 0; i < disk_count; i++) {
        char device[32], folder[32];
        snprintf(device, sizeof device, "%.15s2", disks[i].name);
        snprintf(folder, sizeof folder, "/mnt/%lu", i);
        mkdir(folder, 0755);
        /* noinit_itable: the kernel would go on to zero the inode tables of a huge thin disk in the background. */
        if (mount(device, folder, "ext4", MS_NOATIME, "discard,noinit_itable")) say("mount", device);
        strcat(folder, "/churn");
        mkdir(folder, 0755);
    }
}

static void unmount_all(void) {
    for (uint64_t i = 0; i < disk_count; i++) {
        char folder[32];
        snprintf(folder, sizeof folder, "/mnt/%lu", i);
        if (umount(folder)) say("umount", folder);
    }
}

/* Numbers come in lines; what is echoed would only be noise for who reads. */
static void listen_on_console(void) {
    struct termios terminal;
    if (tcgetattr(STDIN_FILENO, &terminal) == 0) {
        terminal.c_lflag &= ~(tcflag_t)ECHO;
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal);
    }
}

/* Wait until record n may be written; 0 if the power button was pressed before. */
static int told_of(uint64_t n) {
    static uint64_t told, number, spoken;
    while (told < n) {
        uint64_t t = now(CLOCK_MONOTONIC);
        if (told == 0 && t - spoken >= SECOND) {
            printf("SS-FOLLOW\n");
            spoken = t;
        }
        struct pollfd console = {.fd = STDIN_FILENO, .events = POLLIN};
        char text[256];
        if (pressed_before(now(CLOCK_MONOTONIC))) return 0;
        if (poll(&console, 1, 100) <= 0) continue;
        ssize_t length = read(STDIN_FILENO, text, sizeof text);
        for (ssize_t i = 0; i < length; i++) {
            if (text[i] >= '0' && text[i] <= '9') {
                number = number * 10 + (uint64_t)(text[i] - '0');
                continue;
            }
            if (number > told) told = number;
            number = 0;
        }
    }
    return 1;
}

static int ascending(const void *a, const void *b) {
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return (left > right) - (left < right);
}

/* Take note of one record's time; at the end of a span of so many seconds say what it was. What does not fit is not counted. */
static void note_latency(uint64_t began, uint64_t ended, uint64_t span) {
    static uint32_t taken[1 << 16];
    static uint64_t count, since;
    if (!since) since = began;
    if (count < sizeof taken / sizeof *taken) taken[count++] = (uint32_t)((ended - began) / 1000);
    if (ended - since < span * SECOND) return;
    qsort(taken, count, sizeof *taken, ascending);
    printf("SS-LATENCY n=%lu p50=%u p99=%u max=%u\n", count, taken[count / 2], taken[count * 99 / 100], taken[count - 1]);
    count = 0;
    since = now(CLOCK_MONOTONIC);
}

static uint64_t write_records(uint64_t *record, uint64_t rate) {
    uint64_t says = setting("say", 0), follows = setting("follow", 0), span = setting("latency", 0);
    uint64_t boot, first = last + 1, n = first, started = now(CLOCK_MONOTONIC), spoken = started;
    if (getrandom(&boot, sizeof boot, GRND_NONBLOCK) != sizeof boot) boot = now(CLOCK_REALTIME);
    if (follows) listen_on_console();
    while (!pressed_before(started) && (!follows || told_of(n))) {
        struct disk *disk = &disks[n % disk_count];
        fill(record, n, boot);
        uint64_t began = now(CLOCK_MONOTONIC);
        if (pwrite(disk->fd, record, BLOCK, (off_t)(disk->offset + record[SLOT] * BLOCK)) != BLOCK) {
            say("write", disk->name); /* not skipped: the prefix stays strict */
            started = now(CLOCK_MONOTONIC) + SECOND;
            continue;
        }
        uint64_t t = now(CLOCK_MONOTONIC);
        if (span) note_latency(began, t, span);
        if (n == first) printf("SS-FIRST n=%lu\n", n);
        if (says) printf("SS-DID n=%lu\n", n);
        if (t - spoken >= SECOND) {
            printf("SS-AT n=%lu first=%lu\n", n, first);
            spoken = t;
        }
        n++;
        /* The rate is a cap: time that was lost is not made up for. */
        started = started + SECOND / rate > t ? started + SECOND / rate : t;
    }
    return n - 1;
}

int main(void) {
    static uint64_t buffer[CHUNK / 8] __attribute__((aligned(BLOCK)));
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!find_disks(buffer)) {
        printf("SS-ERROR disks: found %lu wanted\n", disk_count);
        return 1;
    }
    if (!for_each_slot(buffer, visit_for_last)) return 1;
    printf("SS-BOOT n=%lu\n", last);
    find_buttons();
    expect_stop();
    if (setting("check", 0)) {
        check(buffer);
        return 0;
    }
    mount_all();
    uint64_t rate = setting("rate", 200), files = setting("churn", 4);
    pid_t child = files ? start_churn(files) : -1;
    uint64_t n = write_records(buffer, rate ? rate : 1);
    if (child > 0) {
        kill(child, SIGTERM);
        waitpid(child, NULL, 0);
    }
    unmount_all();
    printf("SS-LAST n=%lu\n", n);
    return 0;
}
