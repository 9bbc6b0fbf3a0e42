/* SPDX-License-Identifier: Apache-2.0 */
/* memcg_parse_statm: what it took, printed, gives the same again and, but for leading zeros, the text; zeros are never taken; a
 * failure leaves the output alone. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "../harness.h"
#include "parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t before[MEMCG_STATM_FIELDS], pages[MEMCG_STATM_FIELDS], again[MEMCG_STATM_FIELDS];
    memset(before, 0xa5, sizeof before);
    memcpy(pages, before, sizeof pages);

    int rc = memcg_parse_statm((const char *)data, size, pages);
    if (rc < 0) {
        CHECK(rc == -ENODATA || rc == -EINVAL || rc == -ERANGE || rc == -ESRCH, "%d", rc);
        CHECK(memcmp(pages, before, sizeof pages) == 0, "touched");
        return 0;
    }
    char text[256];
    size_t length = 0;
    uint64_t any = 0;
    for (size_t i = 0; i < MEMCG_STATM_FIELDS; i++) {
        length += (size_t)snprintf(text + length, sizeof text - length, "%" PRIu64 "%c", pages[i],
                                   i + 1 < MEMCG_STATM_FIELDS ? ' ' : '\n');
        any |= pages[i];
    }
    CHECK(any != 0, "a zombie's zeros taken for data");
    CHECK(memcg_parse_statm(text, length, again) == 0 && memcmp(again, pages, sizeof pages) == 0, "its own text: %s", text);
    CHECK(length <= size, "more digits than there were: %s", text);
    CHECK(length < size || memcmp(text, data, size) == 0, "another text: %s", text);
    return 0;
}
