// SPDX-License-Identifier: Apache-2.0
// Spans as far as a request waits for them: begun by Marker.span, ended by Span.__exit__. All else about them is Python.
//
// That is two looks at the clock, one at the thread's own storage, one object and an append; and a row in the ring, where that is to
// outlive the process. Nothing here lets go of the GIL, which guards all of it. The types are static: there is one interpreter, since
// pymemcg refuses to be imported in others.
#include "span.h"

#include <stddef.h>
#include <structmember.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    ATTRIBUTION_THREAD = 1, // as in pymemcg/spans.py
    ATTRIBUTION_LOOP = 3,
};

PyTypeObject *span_type;
PyTypeObject *sink_type;
static _Thread_local struct place here; // tid 0 = there was no span in this thread yet

static int holder_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    for (int i = 0; i < 3; i++) {
        Py_VISIT(((struct holder *)self)->held[i]);
    }
    return 0;
}

static int holder_clear(PyObject *self)
{
    for (int i = 0; i < 3; i++) {
        Py_CLEAR(((struct holder *)self)->held[i]);
    }
    return 0;
}

void holder_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);

    PyObject_GC_UnTrack(self);
    holder_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static long long now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now); // cannot fail: Linux has this clock
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

// ---- Span ------------------------------------------------------------------------------------------------------------

static PyObject *span_enter(PyObject *self, PyObject *Py_UNUSED(none))
{
    return Py_NewRef(self);
}

static PyObject *span_exit(PyObject *self, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(count))
{
    struct span *span = (struct span *)self;
    PyObject *const note = span->holder.held[NOTE];
    PyObject *done;

    if (note == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "this span never began: Sampler.span makes spans");
        return NULL;
    }
    if (span->end_ns != 0) { // it is good for one time
        Py_RETURN_NONE;
    }
    span->end_ns = now_ns();
    done = Py_TYPE(note) == sink_type ? sink_take(note, span) : PyObject_CallFunctionObjArgs(note, self, NULL);
    if (done == NULL) {
        return NULL;
    }
    Py_DECREF(done);
    Py_RETURN_NONE;
}

static PyMethodDef span_methods[] = {
    {"__enter__", span_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))span_exit, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef span_members[] = {
    {"name", T_OBJECT_EX, offsetof(struct span, holder.held[NAME]), 0, NULL},
    {"ref", T_OBJECT_EX, offsetof(struct span, holder.held[REF]), 0, NULL},
    {"start_ns", T_LONGLONG, offsetof(struct span, start_ns), 0, NULL},
    {"end_ns", T_LONGLONG, offsetof(struct span, end_ns), 0, NULL},
    {"_note", T_OBJECT_EX, offsetof(struct span, holder.held[NOTE]), READONLY, NULL},
    {"_tid", T_LONGLONG, offsetof(struct span, place.tid), 0, NULL},
    {"_attribution", T_LONGLONG, offsetof(struct span, place.attribution), 0, NULL},
    {"_ran_start_ns", T_LONGLONG, offsetof(struct span, ran_start_ns), 0, NULL},
    {"_ran_end_ns", T_LONGLONG, offsetof(struct span, ran_end_ns), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static const PyType_Slot span_slots[] = {{Py_tp_members, span_members}, {Py_tp_dealloc, holder_dealloc}, {0, NULL}};

// ---- Marker ----------------------------------------------------------------------------------------------------------

static int marker_init(PyObject *self, PyObject *args, PyObject *Py_UNUSED(named))
{
    struct holder *marker = (struct holder *)self;
    PyObject *parts[3];

    if (!PyArg_ParseTuple(args, "O!OO:Marker", &PyType_Type, &parts[KIND], &parts[IN_LOOP], &parts[NOTE])) {
        return -1;
    }
    if (marker->held[KIND] != NULL || !PyType_IsSubtype((PyTypeObject *)parts[KIND], span_type)) {
        PyErr_SetString(PyExc_TypeError, "Marker() is begun once, with a subclass of Span");
        return -1;
    }
    for (int i = 0; i < 3; i++) {
        marker->held[i] = Py_NewRef(parts[i]);
    }
    return 0;
}

// At a thread's first span. Should a loop begin to run in it later, spans that overlap tell.
static int arrive(PyObject *in_loop)
{
    PyObject *answer = PyObject_CallNoArgs(in_loop);
    const int looped = answer == NULL ? -1 : PyObject_IsTrue(answer);

    Py_XDECREF(answer);
    if (looped < 0) {
        return -1;
    }
    here = (struct place){.tid = syscall(SYS_gettid), .attribution = looped ? ATTRIBUTION_LOOP : ATTRIBUTION_THREAD};
    return 0;
}

// (name, ref=None), either also by its name. The outputs are borrowed.
static int read_arguments(PyObject *const *args, Py_ssize_t count, PyObject *keys, PyObject *ret_given[2])
{
    const Py_ssize_t named = keys == NULL ? 0 : PyTuple_Size(keys);
    PyObject *given[2] = {count > 0 ? args[0] : NULL, count > 1 ? args[1] : NULL};

    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *key = PyTuple_GetItem(keys, i);
        const int at = PyUnicode_CompareWithASCIIString(key, "ref") == 0 ? REF : NAME;

        if (given[at] != NULL || (at == NAME && PyUnicode_CompareWithASCIIString(key, "name") != 0)) {
            PyErr_Format(PyExc_TypeError, "span() got '%U' twice, or does not know it", key);
            return -1;
        }
        given[at] = args[count + i];
    }
    if (count > 2 || given[NAME] == NULL) {
        PyErr_SetString(PyExc_TypeError, "span() takes a name and perhaps a ref");
        return -1;
    }
    ret_given[NAME] = given[NAME];
    ret_given[REF] = given[REF] == NULL ? Py_None : given[REF];
    return 0;
}

static PyObject *marker_span(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *keys)
{
    struct holder *marker = (struct holder *)self;
    PyObject *given[2];
    struct span *span;

    if (marker->held[KIND] == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "span() before __init__()");
        return NULL;
    }
    if (read_arguments(args, count, keys, given) != 0 || (here.tid == 0 && arrive(marker->held[IN_LOOP]) != 0)) {
        return NULL;
    }
    span = (struct span *)PyType_GenericAlloc((PyTypeObject *)marker->held[KIND], 0);
    if (span == NULL) {
        return NULL;
    }
    span->holder.held[NAME] = Py_NewRef(given[NAME]);
    span->holder.held[REF] = Py_NewRef(given[REF]);
    span->holder.held[NOTE] = Py_NewRef(marker->held[NOTE]);
    span->place = here;
    span->ran_end_ns = PY_LLONG_MAX;
    span->start_ns = now_ns();
    return (PyObject *)span;
}

static PyMethodDef marker_methods[] = {
    {"span", (PyCFunction)(void (*)(void))marker_span, METH_FASTCALL | METH_KEYWORDS,
     "span($self, /, name, ref=None)\n--\n\nMark a stretch of work: `with sampler.span(name):`, or `@sampler.span(name)`."},
    {NULL, NULL, 0, NULL},
};

static const PyType_Slot marker_slots[] = {{Py_tp_init, marker_init}, {Py_tp_dealloc, holder_dealloc}, {0, NULL}};

// ---- The module ------------------------------------------------------------------------------------------------------

// In a forked child, whose thread is another one.
static PyObject *forget_thread(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    here = (struct place){0};
    Py_RETURN_NONE;
}

PyTypeObject *add_type(PyObject *module, const char *name, size_t size, PyMethodDef *methods, const PyType_Slot *more)
{
    PyType_Slot slots[8] = {
        {Py_tp_traverse, holder_traverse},
        {Py_tp_clear, holder_clear},
        {Py_tp_methods, methods},
    };
    PyType_Spec spec = {name, (int)size, 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slots};
    PyTypeObject *type;

    for (size_t i = 3; i < 7 && more->slot != 0; i++) {
        slots[i] = *more++;
    }
    type = (PyTypeObject *)PyType_FromSpec(&spec);
    return type == NULL || PyModule_AddType(module, type) != 0 ? NULL : type;
}

PyMODINIT_FUNC PyInit__span(void);

PyMODINIT_FUNC PyInit__span(void)
{
    static PyMethodDef functions[] = {{"forget_thread", forget_thread, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL}};
    static struct PyModuleDef module_def = {PyModuleDef_HEAD_INIT, .m_name = "pymemcg._span", .m_size = -1,
                                            .m_methods = functions};
    PyObject *module = PyModule_Create(&module_def);

    if (module == NULL) {
        return NULL;
    }
    span_type = add_type(module, "pymemcg._span.Span", sizeof(struct span), span_methods, span_slots);
    sink_type = add_sink(module);
    if (span_type == NULL || sink_type == NULL ||
        add_type(module, "pymemcg._span.Marker", sizeof(struct holder), marker_methods, marker_slots) == NULL) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
