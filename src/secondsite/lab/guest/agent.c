/* A small stand-in for the QEMU guest agent: what libvirt asks for when it freezes, thaws and shuts down a guest.
 *
 * One line of JSON comes in, one goes out (the QEMU guest agent protocol). The real agent needs libraries that the lab's
 * initramfs does not have. Known: guest-ping, guest-sync, guest-info, guest-fsfreeze-status, -freeze, -freeze-list (all
 * file systems, whatever is listed), -thaw, guest-shutdown, guest-exec of a program without arguments, guest-exec-status.
 * Everything else gets the protocol's CommandNotFound.
 *
 * It prints SS-FREEZE and SS-THAW, so that the host can see that a freeze was real, and how long it lasted.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PORT_NAME "org.qemu.guest_agent.0"
#define DISKS_MAX 16

static int frozen;

static int open_port(void) {
    DIR *ports = opendir("/sys/class/virtio-ports");
    if (!ports) return -1;
    int fd = -1;
    for (struct dirent *entry; fd < 0 && (entry = readdir(ports));) {
        char path[512], name[64] = "";
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%.200s/name", entry->d_name);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        if (fgets(name, sizeof name, file) && !strncmp(name, PORT_NAME, strlen(PORT_NAME))) {
            snprintf(path, sizeof path, "/dev/%.200s", entry->d_name);
            fd = open(path, O_RDWR | O_CLOEXEC);
        }
        fclose(file);
    }
    closedir(ports);
    return fd;
}

/* Freeze or thaw every file system of the disks; return how many. */
static int each_file_system(unsigned long request) {
    int count = 0;
    for (int i = 0; i < DISKS_MAX; i++) {
        char folder[32];
        snprintf(folder, sizeof folder, "/mnt/%d", i);
        int fd = open(folder, O_RDONLY | O_CLOEXEC);
        if (fd < 0) break;
        if (ioctl(fd, request, 0) == 0) count++;
        close(fd);
    }
    return count;
}

static void shut_down(void) {
    FILE *file = fopen("/tmp/workload.pid", "r");
    int pid = 0;
    if (file && fscanf(file, "%d", &pid) == 1) kill(pid, SIGTERM);
    if (file) fclose(file);
}

static int asks_for(const char *line, const char *command) {
    char text[96];
    snprintf(text, sizeof text, "\"execute\":\"%s\"", command);
    return strstr(line, text) != NULL;
}

static void execute(const char *line, char *reply, size_t size) {
    char program[256] = "";
    const char *path = strstr(line, "\"path\":\"");
    if (path) sscanf(path + 8, "%255[^\"]", program);
    if (access(program, X_OK)) {
        snprintf(reply, size, "{\"error\":{\"class\":\"GenericError\",\"desc\":\"Failed to execute child process\"}}\n");
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        execl(program, program, NULL);
        _exit(127);
    }
    snprintf(reply, size, "{\"return\":{\"pid\":%d}}\n", child);
}

static void execution(const char *line, char *reply, size_t size) {
    const char *pid = strstr(line, "\"pid\":");
    int status = 0;
    if (!pid || waitpid(atoi(pid + 6), &status, WNOHANG) <= 0)
        snprintf(reply, size, "{\"return\":{\"exited\":false}}\n");
    else if (WIFEXITED(status))
        snprintf(reply, size, "{\"return\":{\"exited\":true,\"exitcode\":%d}}\n", WEXITSTATUS(status));
    else
        snprintf(reply, size, "{\"return\":{\"exited\":true,\"signal\":%d}}\n", WTERMSIG(status));
}

static void answer(int fd, const char *line) {
    char reply[512];
    const char *id = strstr(line, "\"id\":");
    if (asks_for(line, "guest-sync"))
        snprintf(reply, sizeof reply, "{\"return\":%lld}\n", id ? atoll(id + 5) : 0);
    else if (asks_for(line, "guest-ping"))
        snprintf(reply, sizeof reply, "{\"return\":{}}\n");
    else if (asks_for(line, "guest-info"))
        snprintf(reply, sizeof reply, "{\"return\":{\"version\":\"7.2.0\",\"supported_commands\":[]}}\n");
    else if (asks_for(line, "guest-fsfreeze-status"))
        snprintf(reply, sizeof reply, "{\"return\":\"%s\"}\n", frozen ? "frozen" : "thawed");
    else if (asks_for(line, "guest-fsfreeze-freeze") || asks_for(line, "guest-fsfreeze-freeze-list")) {
        frozen = 1;
        int count = each_file_system(FIFREEZE);
        printf("SS-FREEZE file-systems=%d\n", count);
        snprintf(reply, sizeof reply, "{\"return\":%d}\n", count);
    } else if (asks_for(line, "guest-fsfreeze-thaw")) {
        int count = each_file_system(FITHAW);
        frozen = 0;
        printf("SS-THAW file-systems=%d\n", count);
        snprintf(reply, sizeof reply, "{\"return\":%d}\n", count);
    } else if (asks_for(line, "guest-exec"))
        execute(line, reply, sizeof reply);
    else if (asks_for(line, "guest-exec-status"))
        execution(line, reply, sizeof reply);
    else if (asks_for(line, "guest-shutdown")) {
        shut_down(); /* the protocol has no answer to it */
        return;
    } else
        snprintf(reply, sizeof reply, "{\"error\":{\"class\":\"CommandNotFound\",\"desc\":\"the lab's agent does not know this\"}}\n");
    for (const char *p = reply; *p;) {
        ssize_t written = write(fd, p, strlen(p));
        if (written <= 0) return;
        p += written;
    }
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    int fd = open_port();
    if (fd < 0) return 0; /* the machine has no channel */
    char line[4096];
    size_t length = 0;
    for (;;) {
        char byte;
        ssize_t got = read(fd, &byte, 1);
        if (got <= 0) { /* nobody on the other side */
            nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
            length = 0;
        } else if (byte == '\n') {
            line[length] = 0;
            if (length) answer(fd, line);
            length = 0;
        } else if (byte != ' ' && byte > 0 && length < sizeof line - 1)
            line[length++] = byte; /* spaces don't matter in what we know; 0xff is the sync delimiter */
    }
}
