/* SPDX-License-Identifier: Apache-2.0 */
/* A ring where there is no room for it: a tmpfs of a few pages, in a mount namespace of our own. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "rings.h"

static char folder[] = "/tmp/memcg-full-XXXXXX";

static void remove_folder(void)
{
    (void)umount2(folder, MNT_DETACH);
    (void)rmdir(folder);
}

static void mount_tmpfs(uint64_t bytes)
{
    char options[64];
    CHECK(mkdtemp(folder), "no directory: %s", strerror(errno));
    atexit(remove_folder);
    if (unshare(CLONE_NEWNS) != 0)
        SKIP("no mount namespace of our own: %s", strerror(errno));
    snprintf(options, sizeof options, "size=%" PRIu64, bytes);
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 || mount("none", folder, "tmpfs", 0, options) != 0)
        SKIP("no tmpfs of our own: %s", strerror(errno));
}

static uint64_t free_bytes(void)
{
    struct statvfs status;
    CHECK(statvfs(folder, &status) == 0, "no status");
    return (uint64_t)status.f_bavail * status.f_frsize;
}

int main(void)
{
    struct memcg_map *map = NULL;
    const uint64_t room = 16 * (uint64_t)rings_page(), align = rings_page();
    mount_tmpfs(room);

    struct memcg_channel_spec channels[RINGS_COUNT];
    memcpy(channels, RINGS_CHANNELS, sizeof channels);
    channels[0].rows = room / 8;
    char path[128];
    snprintf(path, sizeof path, "%s/ring", folder);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    CHECK(fd >= 0, "no file: %s", strerror(errno));
    int rc = memcg_ring_create(fd, channels, RINGS_COUNT, NULL, 0, (uint32_t)align, 1);
    CHECK(rc == -ENOSPC, "a ring larger than the file system gave %d", rc);
    CHECK(memcg_map_open(fd, &map) == -EBADMSG && !map, "what is left of it is a ring");
    CHECK(unlink(path) == 0 && close(fd) == 0, "cannot be removed");
    CHECK(free_bytes() == room, "%" PRIu64 " of %" PRIu64 " bytes are free again", free_bytes(), room);

    fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    CHECK(fd >= 0, "no file: %s", strerror(errno));
    rc = memcg_ring_create(fd, RINGS_CHANNELS, RINGS_COUNT, NULL, 0, (uint32_t)align, 1);
    CHECK(rc == 0, "a ring that fits gave %d", rc);

    /* Somebody else fills what is left. The ring has all its memory: writing to it is no SIGBUS. */
    snprintf(path, sizeof path, "%s/hog", folder);
    int hog = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    char page[4096] = {1};
    while (write(hog, page, sizeof page) > 0)
        continue;
    CHECK(errno == ENOSPC && free_bytes() == 0, "the file system is not full: %s", strerror(errno));
    struct memcg_writer writer;
    struct memcg_channel usage;
    CHECK(memcg_writer_open(fd, &writer) == 0 && memcg_channel_bind(&writer, "usage", &usage) == 0, "no writer");
    for (uint64_t row = 0; row < usage.header->capacity; row++) {
        for (int c = 0; c < 3; c++)
            memcg_channel_put(&usage, c, 1);
        memcg_channel_publish(&usage);
    }
    CHECK(memcg_map_open(fd, &map) == 0, "cannot be mapped in a full file system");
    rings_read_all(map);
    memcg_map_free(map);
    memcg_writer_close(&writer);
    close(hog);
    close(fd);
    return 0;
}
