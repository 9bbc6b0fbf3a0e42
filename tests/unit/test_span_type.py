# SPDX-License-Identifier: Apache-2.0
"""csrc/span.c where it is used as it should not be."""

from __future__ import annotations

import gc
import inspect
import weakref

import pytest

from pymemcg import Sampler, _span
from pymemcg.spans import Span


def test_what_is_no_call_of_span_is_said():
    sampler = Sampler()
    for wrong in ({}, {"ref": 1}, {"name": "a", "refs": 1}):
        with pytest.raises(TypeError, match="span"):
            sampler.span(**wrong)
    for wrong in (("a", 1, 2), ()):
        with pytest.raises(TypeError, match="span"):
            sampler.span(*wrong)
    with pytest.raises(TypeError, match="twice"):
        sampler.span("a", name="b")
    with pytest.raises(TypeError, match="twice"):
        sampler.span("a", 1, ref=2)
    assert (sampler.span(ref=1, name="a").name, sampler.span("a", ref=1).ref) == ("a", 1)
    assert list(inspect.signature(sampler.span).parameters) == ["name", "ref"]


def test_a_span_ends_once():
    sampler = Sampler()
    span = sampler.span("a")
    assert span.end_ns == 0
    span.__exit__(None, None, None)
    end_ns = span.end_ns
    with span:
        pass
    assert span.end_ns == end_ns >= span.start_ns
    assert sampler._spans.gather() == 1


def test_what_was_not_begun_does_not_end():
    with pytest.raises(RuntimeError, match="never began"), Span():
        pass
    with pytest.raises(RuntimeError, match="before"):
        _span.Marker.__new__(_span.Marker).span("a")


def test_a_marker_makes_spans_only():
    for kind in (int, object, _span.Marker):
        with pytest.raises(TypeError, match="Span"):
            _span.Marker(kind, bool, print)


def test_what_the_callbacks_raise_comes_out():
    def fails(span):
        raise KeyError(span.name)

    with pytest.raises(KeyError, match="mine"), _span.Marker(Span, bool, fails).span("mine"):
        pass

    _span.forget_thread()
    with pytest.raises(ZeroDivisionError):
        _span.Marker(Span, lambda: 1 // 0, print).span("a")
    _span.Marker(Span, bool, print).span("a")


def test_a_span_within_its_own_reference_is_collected():
    class Held:
        pass

    held = Held()
    gone = weakref.ref(held)
    span = Sampler().span("a")
    span.ref = [span, held]
    del span, held
    gc.collect()
    assert gone() is None
