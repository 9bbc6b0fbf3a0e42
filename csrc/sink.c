// SPDX-License-Identifier: Apache-2.0
// Where spans go that are to outlive their process: to Python, as others do, and to the ring, as a row.
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "span.h"
#include "spans.h"

struct sink {
    struct holder holder;
    struct memcg_spans *spans; // NULL = there is no ring
    long long pid;
    long long since_ns; // what began before it, before a fork, is the parent's
};

enum { NAMES = 2048 }; // that are remembered; the ring has room for half of them

// `name` is an exact str, so that no code of others runs.
static void put_row(struct sink *sink, int64_t row[MEMCG_SPAN_COLUMNS], PyObject *name)
{
    PyObject *const ids = sink->holder.held[NAME_IDS];
    PyObject *known = PyDict_GetItemWithError(ids, name);
    Py_ssize_t bytes = 0;
    const char *text = NULL;
    int id;

    row[MEMCG_SPAN_NAME] = known == NULL ? MEMCG_NAME_NEW : PyLong_AsLongLong(known);
    if (known == NULL) {
        text = PyUnicode_AsUTF8AndSize(name, &bytes);
        row[MEMCG_SPAN_NAME] = text == NULL ? 0 : MEMCG_NAME_NEW; // lone surrogates
    }
    id = memcg_spans_put(sink->spans, row, text, (size_t)bytes);
    if (text != NULL && id >= 0 && PyDict_Size(ids) < NAMES) {
        known = PyLong_FromLong(id);
        if (known != NULL) {
            PyDict_SetItem(ids, name, known);
            Py_DECREF(known);
        }
    }
    PyErr_Clear();
}

// A reference is a number, or the text of whatever it is, which may run any code. What that raises is no matter of the request, unless it
// says that all is to end, as the handler of a signal may at any line of Python.
static void put_ref(PyObject *ref, int64_t row[MEMCG_SPAN_COLUMNS])
{
    Py_ssize_t bytes;
    const char *text;
    PyObject *string;

    row[MEMCG_SPAN_REF_BYTES] = MEMCG_REF_NONE;
    if (ref == NULL || ref == Py_None) { // NULL: it was deleted
        return;
    }
    if (PyLong_Check(ref)) {
        row[MEMCG_SPAN_REF_TEXT] = PyLong_AsLongLong(ref);
        if (PyErr_Occurred() == NULL) {
            row[MEMCG_SPAN_REF_BYTES] = MEMCG_REF_INT;
            return;
        }
        PyErr_Clear();
        row[MEMCG_SPAN_REF_TEXT] = 0;
    }
    string = PyObject_Str(ref);
    text = string == NULL ? NULL : PyUnicode_AsUTF8AndSize(string, &bytes);
    if (text != NULL) {
        row[MEMCG_SPAN_REF_BYTES] = bytes;
        memcpy(&row[MEMCG_SPAN_REF_TEXT], text, bytes < MEMCG_REF_BYTES ? (size_t)bytes : MEMCG_REF_BYTES);
    }
    Py_XDECREF(string);
    if (PyErr_Occurred() != NULL && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear();
    }
}

// An exception that put_ref() left is still there after it; the row is written all the same.
static void write_row(struct sink *sink, const struct span *span)
{
    const long long start = span->start_ns, end = span->end_ns > start ? span->end_ns : start;
    long long first = span->ran_start_ns > start ? span->ran_start_ns : start;
    long long last = span->ran_end_ns < end ? span->ran_end_ns : end;
    int64_t row[MEMCG_SPAN_COLUMNS] = {0};
    PyObject *name, *kind, *value, *trace;

    first = first < end ? first : end;
    row[MEMCG_SPAN_START] = start;
    row[MEMCG_SPAN_END] = end;
    row[MEMCG_SPAN_TID] = span->place.tid;
    row[MEMCG_SPAN_ATTRIBUTION] = span->place.attribution;
    row[MEMCG_SPAN_RAN_START] = first;
    row[MEMCG_SPAN_RAN_END] = last > first ? last : first;
    row[MEMCG_SPAN_PID] = sink->pid;
    put_ref(span->holder.held[REF], row);
    PyErr_Fetch(&kind, &value, &trace);
    name = span->holder.held[NAME] == NULL ? NULL : PyUnicode_FromObject(span->holder.held[NAME]);
    if (name == NULL) {
        PyErr_Clear();
        name = PyUnicode_FromString("(other)");
    }
    if (sink->spans != NULL && name != NULL) { // the reference's __str__ may have closed it
        put_row(sink, row, name);
    }
    Py_XDECREF(name);
    PyErr_Restore(kind, value, trace);
}

PyObject *sink_take(PyObject *self, struct span *span)
{
    struct sink *const sink = (struct sink *)self;
    PyObject *done, *kind, *value, *trace;

    if (sink->spans != NULL && span->start_ns >= sink->since_ns) {
        write_row(sink, span);
    }
    PyErr_Fetch(&kind, &value, &trace);
    done = PyObject_CallFunctionObjArgs(sink->holder.held[NOTE], (PyObject *)span, NULL);
    if (kind == NULL) {
        return done;
    }
    Py_XDECREF(done);
    PyErr_Restore(kind, value, trace);
    return NULL;
}

static PyObject *sink_call(PyObject *self, PyObject *args, PyObject *Py_UNUSED(named))
{
    PyObject *span;

    if (!PyArg_ParseTuple(args, "O!", span_type, &span)) {
        return NULL;
    }
    return sink_take(self, (struct span *)span);
}

static int sink_init(PyObject *self, PyObject *args, PyObject *Py_UNUSED(named))
{
    struct sink *sink = (struct sink *)self;
    PyObject *note;

    if (sink->holder.held[NOTE] != NULL || !PyArg_ParseTuple(args, "O:Sink", &note)) {
        if (PyErr_Occurred() == NULL) {
            PyErr_SetString(PyExc_TypeError, "Sink() is begun once");
        }
        return -1;
    }
    sink->holder.held[NAME_IDS] = PyDict_New();
    if (sink->holder.held[NAME_IDS] == NULL) {
        return -1;
    }
    sink->holder.held[NOTE] = Py_NewRef(note);
    return 0;
}

static void let_go(PyObject *self)
{
    struct sink *sink = (struct sink *)self;
    struct memcg_spans *spans = sink->spans;

    sink->spans = NULL;
    if (spans != NULL) {
        memcg_spans_close(spans);
    }
}

static PyObject *sink_open(PyObject *self, PyObject *fd)
{
    struct sink *sink = (struct sink *)self;
    const long ring_fd = PyLong_AsLong(fd);
    int rc;

    if (PyErr_Occurred() != NULL) {
        return NULL;
    }
    if (sink->holder.held[NOTE] == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "open() before __init__()");
        return NULL;
    }
    let_go(self);
    PyDict_Clear(sink->holder.held[NAME_IDS]);
    sink->pid = getpid();
    sink->since_ns = 0;
    rc = memcg_spans_open((int)ring_fd, &sink->spans);
    if (rc < 0 && rc != -ENOENT) {
        errno = -rc;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyBool_FromLong(rc == 0);
}

static PyObject *sink_close(PyObject *self, PyObject *Py_UNUSED(none))
{
    let_go(self);
    Py_RETURN_NONE;
}

static PyObject *sink_forked(PyObject *self, PyObject *since_ns)
{
    struct sink *sink = (struct sink *)self;

    sink->since_ns = PyLong_AsLongLong(since_ns);
    if (PyErr_Occurred() != NULL) {
        return NULL;
    }
    sink->pid = getpid();
    if (sink->spans != NULL) {
        memcg_spans_forked(sink->spans);
    }
    Py_RETURN_NONE;
}

static void sink_dealloc(PyObject *self)
{
    let_go(self);
    holder_dealloc(self);
}

static PyMethodDef sink_methods[] = {
    {"open", sink_open, METH_O, "From here on spans are rows of the ring in this file, too; False if it has no room for them."},
    {"close", sink_close, METH_NOARGS, "No more rows."},
    {"forked", sink_forked, METH_O, "In a forked child: rows of the same ring for what begins from this time on."},
    {NULL, NULL, 0, NULL},
};

PyTypeObject *add_sink(PyObject *module)
{
    const PyType_Slot more[] = {{Py_tp_init, sink_init}, {Py_tp_call, sink_call}, {Py_tp_dealloc, sink_dealloc}, {0, NULL}};

    return add_type(module, "pymemcg._span.Sink", sizeof(struct sink), sink_methods, more);
}
