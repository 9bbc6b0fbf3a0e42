/* SPDX-License-Identifier: Apache-2.0 */

/* All that a C test needs: CHECK(condition, message as for printf) says where it failed and ends the program with 1, SKIP(reason)
 * with 77, which ctest counts as skipped; a test that returns 0 from main() passed. harness_read() gives a captured file. */
#ifndef HARNESS_H
#define HARNESS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HARNESS_SKIPPED 77

#define CHECK(condition, ...)                                                                                                  \
    do {                                                                                                                       \
        if (!(condition)) {                                                                                                    \
            fprintf(stderr, "%s:%d: %s: failed: %s: ", __FILE__, __LINE__, __func__, #condition);                              \
            fprintf(stderr, __VA_ARGS__);                                                                                      \
            fputc('\n', stderr);                                                                                               \
            exit(1);                                                                                                           \
        }                                                                                                                      \
    } while (0)

#define SKIP(...)                                                                                                              \
    do {                                                                                                                       \
        fprintf(stderr, "%s:%d: skipped: ", __FILE__, __LINE__);                                                               \
        fprintf(stderr, __VA_ARGS__);                                                                                          \
        fputc('\n', stderr);                                                                                                   \
        exit(HARNESS_SKIPPED);                                                                                                 \
    } while (0)

#ifdef TEST_DATA_DIR
/* The bytes of a file under tests/data in a block of exactly their length, so that a sanitizer sees one byte read too many.
 * The caller frees it. */
static inline char *harness_read(const char *relative, size_t *ret_length)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", TEST_DATA_DIR, relative);
    FILE *file = fopen(path, "rb");
    CHECK(file, "cannot open %s", path);
    char buffer[32768];
    size_t length = fread(buffer, 1, sizeof buffer, file);
    CHECK(feof(file), "%s does not fit in %zu bytes", path, sizeof buffer);
    fclose(file);
    char *text = malloc(length ? length : 1);
    CHECK(text, "no memory for %s", path);
    memcpy(text, buffer, length);
    *ret_length = length;
    return text;
}
#endif

#endif
