/* SPDX-License-Identifier: Apache-2.0 */
/* Public header of the native core: what memcg_abi.h needs around it. */
#ifndef MEMCG_H
#define MEMCG_H

#include <stddef.h>
#include <stdint.h>

#define MEMCG_NONE INT64_MAX /* "no limit", and a hit count that a level does not have */

#include "memcg_abi.h"

_Static_assert(offsetof(struct memcg_ring_header, state) % 64 == 0, "the state starts a cache line");
_Static_assert(sizeof(struct memcg_channel_header) == 128 && offsetof(struct memcg_channel_header, head) == 64,
               "head starts a cache line, and an array of channel headers keeps it there");

#endif
