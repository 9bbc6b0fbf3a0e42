/* SPDX-License-Identifier: Apache-2.0 */
/* What the sampler needs of a source beside the ABI. */
#ifndef MEMCG_SOURCE_H
#define MEMCG_SOURCE_H

#include <stdbool.h>

#include "memcg.h"

int memcg_source_find(const struct memcg_source *source, const char *key); /* index of a key, or -ENOENT */
uint32_t memcg_source_generation(const struct memcg_source *source);       /* differs when indices have moved */
int memcg_source_fd(const struct memcg_source *source);
bool memcg_source_may_recover(int rc); /* a failed read that says nothing about the file: no memory, no descriptor left */
size_t memcg_source_bytes(const struct memcg_source *source);

#endif
