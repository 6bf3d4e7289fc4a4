/* ladle.soup._kernel: the Python face of _mean.h, compiled for three generations of CPU and picked at import. */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_mean.h"

typedef int Average(const Mean *mean, void *out, ptrdiff_t count);

static int average_anywhere(const Mean *mean, void *out, ptrdiff_t count) { return average_rows(mean, out, count); }

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx2"))) static int average_avx2(const Mean *mean, void *out, ptrdiff_t count) {
    return average_rows(mean, out, count);
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512"))) static int average_avx512(
    const Mean *mean, void *out, ptrdiff_t count) {
    return average_rows(mean, out, count);
}

static Average *pick_average(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return average_avx512;
    return __builtin_cpu_supports("avx2") ? average_avx2 : average_anywhere;
}
#else
static Average *pick_average(void) { return average_anywhere; }
#endif

static Average *average_here = average_anywhere;

enum { MAX_MEMBERS = 1024, MAX_DENOMINATOR = 1 << 20 };

/* Hold the members' buffers and read their coefficients; returns how many are held, with a Python error set on failure. */
static Py_ssize_t hold_members(PyObject *members, PyObject *coefficients, Py_ssize_t size, Py_buffer *views, const void **data,
                               uint32_t *integers) {
    Py_ssize_t held = 0, num_members = PySequence_Size(members);
    while (held < num_members && !PyErr_Occurred()) {
        PyObject *member = PySequence_GetItem(members, held), *coefficient = PySequence_GetItem(coefficients, held);
        if (member && coefficient && PyObject_GetBuffer(member, &views[held], PyBUF_SIMPLE) == 0) {
            data[held] = views[held].buf;
            integers[held] = (uint32_t)PyLong_AsUnsignedLong(coefficient);
            if (views[held].len != size) PyErr_SetString(PyExc_ValueError, "a member and the output differ in length");
            held++;
        }
        Py_XDECREF(member);
        Py_XDECREF(coefficient);
    }
    return held;
}

static PyObject *average(PyObject *module, PyObject *args) {
    PyObject *members, *coefficients;
    Py_buffer out, views[MAX_MEMBERS];
    const void *data[MAX_MEMBERS];
    uint32_t integers[MAX_MEMBERS];
    Mean mean = {0};
    (void)module;
    if (!PyArg_ParseTuple(args, "iOOIiw*:average", &mean.format, &members, &coefficients, &mean.denominator, &mean.out_format, &out))
        return NULL;

    Py_ssize_t num_members = PySequence_Size(members), held = 0;
    int is_finite = 0;
    if (mean.format < 0 || mean.format >= NUM_FORMATS || (mean.out_format != mean.format && mean.out_format != FP32)) {
        PyErr_SetString(PyExc_ValueError, "a format is 0 (bf16), 1 (fp16) or 2 (fp32); the output's is the members' or 2");
    } else if (num_members < 1 || num_members > MAX_MEMBERS || PySequence_Size(coefficients) != num_members) {
        PyErr_SetString(PyExc_ValueError, "needs 1 to 1024 members and a coefficient each");
    } else if (!mean.denominator || mean.denominator > MAX_DENOMINATOR) {
        PyErr_SetString(PyExc_ValueError, "needs a denominator from 1 to 2^20");
    } else {
        Py_ssize_t count = out.len / FORMATS[mean.out_format].size;
        held = hold_members(members, coefficients, count * FORMATS[mean.format].size, views, data, integers);
        mean.num_members = num_members, mean.members = data, mean.coefficients = integers;
        while (mean.denominator_bits < 32 && (uint64_t)1 << mean.denominator_bits < mean.denominator) mean.denominator_bits++;
        if (!PyErr_Occurred()) {
            Py_BEGIN_ALLOW_THREADS;
            is_finite = average_here(&mean, out.buf, count);
            Py_END_ALLOW_THREADS;
        }
    }
    while (held) PyBuffer_Release(&views[--held]);
    PyBuffer_Release(&out);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(is_finite);
}

static PyMethodDef METHODS[] = {
    {"average", average, METH_VARARGS,
     "average(format, members, coefficients, denominator, out_format, out) -> bool\n\n"
     "Fill the buffer `out` with the members' exact weighted mean, rounded once; False if a member is not finite."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_kernel", NULL, -1, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernel(void) {
    average_here = pick_average();
    return PyModule_Create(&MODULE);
}
