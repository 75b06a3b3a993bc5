// The Python module gru_jax._native; see _native.pyi. It uses the limited API: one binary serves every Python from 3.11
// on.
#include <Python.h>

#include <exception>

#include "isa.h"
#include "targets.h"

namespace gru_jax {
namespace {

// The name of the instruction set in use; null, with a Python error, if it cannot be chosen.
const char* chosen_isa() {
  try {
    return kernels().name;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
}

PyObject* isa(PyObject*, PyObject*) {
  const char* name = chosen_isa();
  return name ? PyUnicode_FromString(name) : nullptr;
}

PyObject* handlers(PyObject*, PyObject*) {
  if (!chosen_isa()) return nullptr;
  PyObject* dict = PyDict_New();
  for (const Target& target : targets()) {
    // Without a name, as jax.ffi.pycapsule makes it.
    PyObject* capsule = dict ? PyCapsule_New(reinterpret_cast<void*>(target.handler), nullptr, nullptr) : nullptr;
    if (!capsule || PyDict_SetItemString(dict, target.name, capsule) < 0) Py_CLEAR(dict);
    Py_XDECREF(capsule);
  }
  return dict;
}

PyMethodDef methods[] = {
    {"handlers", handlers, METH_NOARGS, "Name of an FFI target -> PyCapsule of its handler."},
    {"isa", isa, METH_NOARGS, "The instruction set in use: avx512, avx2 or baseline."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT,
                          .m_name = "gru_jax._native",
                          .m_doc = "The C++ of the CPU lowering.",
                          .m_size = 0,
                          .m_methods = methods,
                          .m_slots = nullptr,
                          .m_traverse = nullptr,
                          .m_clear = nullptr,
                          .m_free = nullptr};

}  // namespace
}  // namespace gru_jax

PyMODINIT_FUNC PyInit__native() { return PyModuleDef_Init(&gru_jax::definition); }
