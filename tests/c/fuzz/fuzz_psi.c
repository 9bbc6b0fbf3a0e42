/* SPDX-License-Identifier: Apache-2.0 */
/* memcg_parse_psi: what it took, printed as the kernel prints it, gives the same again; a failure leaves the output alone. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "../harness.h"
#include "parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t print_line(char *to, size_t room, const char *name, const uint64_t avg[3], uint64_t total)
{
    return (size_t)snprintf(to, room,
                            "%s avg10=%" PRIu64 ".%02" PRIu64 " avg60=%" PRIu64 ".%02" PRIu64 " avg300=%" PRIu64 ".%02" PRIu64
                            " total=%" PRIu64 "\n",
                            name, avg[0] / 100, avg[0] % 100, avg[1] / 100, avg[1] % 100, avg[2] / 100, avg[2] % 100, total);
}

static int same(const struct memcg_psi *a, const struct memcg_psi *b)
{
    return a->some_avg10 == b->some_avg10 && a->some_avg60 == b->some_avg60 && a->some_avg300 == b->some_avg300 &&
           a->some_us == b->some_us && a->full_avg10 == b->full_avg10 && a->full_avg60 == b->full_avg60 &&
           a->full_avg300 == b->full_avg300 && a->full_us == b->full_us && a->has_full == b->has_full;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct memcg_psi before, psi, again;
    memset(&before, 0xa5, sizeof before);
    memcpy(&psi, &before, sizeof psi);
    memset(&again, 0, sizeof again);

    int rc = memcg_parse_psi((const char *)data, size, &psi);
    if (rc < 0) {
        CHECK(rc == -ENODATA || rc == -EINVAL || rc == -ERANGE, "%d", rc);
        CHECK(same(&psi, &before), "touched");
        return 0;
    }
    CHECK(rc == 0 && data[size - 1] == '\n', "taken, though cut short");
    CHECK(psi.has_full || (psi.full_avg10 | psi.full_avg60 | psi.full_avg300 | psi.full_us) == 0, "full out of nothing");

    char text[512];
    size_t length =
        print_line(text, sizeof text, "some", (uint64_t[]){psi.some_avg10, psi.some_avg60, psi.some_avg300}, psi.some_us);
    if (psi.has_full)
        length += print_line(text + length, sizeof text - length, "full",
                             (uint64_t[]){psi.full_avg10, psi.full_avg60, psi.full_avg300}, psi.full_us);
    CHECK(memcg_parse_psi(text, length, &again) == 0, "its own text: %s", text);
    CHECK(same(&again, &psi), "other numbers: %s", text);
    return 0;
}
