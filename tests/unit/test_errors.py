# SPDX-License-Identifier: Apache-2.0
"""What an error says, and that it survives the way between processes."""

from __future__ import annotations

import os
import pickle

import pytest

from pymemcg.errors import MemcgError, SourceError, TargetError


class TestErrors:
    def test_they_say_path_message_and_help(self):
        error = TargetError("is no group", path="/x", hint="try another")
        assert str(error) == "/x: is no group (try another)"
        assert str(TargetError("/x is no group", path="/x")) == "/x is no group"
        ours = [kind for kind in MemcgError.__subclasses__() if kind.__module__ == MemcgError.__module__]
        assert len({kind.exit_code for kind in (*ours, MemcgError)}) == 5

    @pytest.mark.parametrize(
        ("path", "text"),
        [
            ("empty", "empty: is damaged: it is empty"),
            ("is", "is: is damaged: it is empty"),
            ("/", "/: is damaged: it is empty"),
        ],
    )
    def test_a_path_that_the_message_has_as_a_word_of_its_own_is_said(self, path, text):
        assert str(MemcgError("is damaged: it is empty", path=path)) == text

    def test_a_path_that_begins_like_the_one_in_the_message_is_said(self):
        assert str(MemcgError("there is no /x.part", path="/x")) == "/x: there is no /x.part"
        assert str(MemcgError("/x/y is no group", path="/x")) == "/x: /x/y is no group"
        assert str(MemcgError("nothing at '/x'.", path="/x")) == "nothing at '/x'."

    @pytest.mark.parametrize("kind", [MemcgError, *MemcgError.__subclasses__()])
    def test_they_survive_pickling(self, kind):
        error = pickle.loads(pickle.dumps(kind("went away", path="/x", hint="start it")))
        assert (type(error), str(error), error.path, error.hint) == (kind, "/x: went away (start it)", "/x", "start it")

    def test_a_sources_error_number_survives_too(self):
        error = pickle.loads(pickle.dumps(SourceError("went away", path="/x", errno=19)))
        assert isinstance(error, OSError)
        assert (error.errno, error.strerror, error.filename) == (19, os.strerror(19), "/x")
