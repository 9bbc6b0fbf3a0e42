# SPDX-License-Identifier: Apache-2.0
# What csrc/memcg_abi.h declares, as cffi offers it.
from typing import Any

ffi: Any
lib: Any
