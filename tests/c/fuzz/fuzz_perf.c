/* SPDX-License-Identifier: Apache-2.0 */
/* memcg_perf_parse: whatever a record holds, nothing beyond its end is read, and what is called ours has one of our ids. */
#include <string.h>

#include "../harness.h"
#include "perf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint64_t id[MEMCG_TRACEPOINTS] = {0x0101, 0x0202, 0x0303, 0, 0x0505, 0x0606, 0x0707};
    struct memcg_perf_event event = {.tracepoint = -1};
    uint64_t lost = 0;
    void *record = malloc(size ? size : 1); /* of exactly its length, so that the sanitizer sees a byte too many */
    CHECK(record, "no memory");
    memcpy(record, data, size);
    int rc = memcg_perf_parse(record, size, id, &event, &lost);
    CHECK(rc == 0 || rc == 1, "returned %d", rc);
    CHECK(rc == 0 ? event.tracepoint == -1 : id[event.tracepoint] != 0, "tracepoint %d", event.tracepoint);
    free(record);
    return 0;
}
