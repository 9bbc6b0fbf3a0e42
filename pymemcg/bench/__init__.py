# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of the promises, run from the installed package: `pymemcg bench`."""
