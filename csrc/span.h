// SPDX-License-Identifier: Apache-2.0
// What span.c and sink.c share of the module pymemcg._span.
#ifndef MEMCG_SPAN_H
#define MEMCG_SPAN_H

#include <Python.h>

// What all types begin with, and all that the garbage collector has to know of them.
struct holder {
    PyObject ob_base;
    PyObject *held[3];
};

enum {
    KIND,
    IN_LOOP,
    NOTE
};                  // a Marker's: the subclass of Span; () -> bool as of pymemcg/spans.py; (span) -> None when it ended
enum { NAME, REF }; // a Span's, and NOTE
enum { NAME_IDS };  // a Sink's, and NOTE: a dict of names to their rows in the ring

struct place {
    long long tid;
    long long attribution;
};

struct span {
    struct holder holder;
    long long start_ns;
    long long end_ns; // 0 = it goes on
    struct place place;
    long long ran_start_ns;
    long long ran_end_ns;
};

extern PyTypeObject *span_type;
extern PyTypeObject *sink_type;

// `more` ends with {0, NULL}, and has at most 4 before it.
PyTypeObject *add_type(PyObject *module, const char *name, size_t size, PyMethodDef *methods, const PyType_Slot *more);
void holder_dealloc(PyObject *self);

PyTypeObject *add_sink(PyObject *module);
// What calling a Sink with a span does.
PyObject *sink_take(PyObject *self, struct span *span);

#endif
