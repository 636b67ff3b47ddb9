// siri._native: the functions of this folder for Python. siri/engine/native.py is their public face and checks what
// comes in; here is checked what would otherwise read memory that is not ours.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "anchor_hash.h"
#include "similarity.h"

namespace py = pybind11;

namespace {

using Int64Array = py::array_t<std::int64_t, py::array::c_style>;

std::string type_name(py::handle object) { return py::cast<std::string>(py::type::handle_of(object).attr("__name__")); }

siri::State view_of_bytes(PyObject* bytes) {
    const auto* data = reinterpret_cast<const unsigned char*>(PyBytes_AS_STRING(bytes));
    return {data, static_cast<std::size_t>(PyBytes_GET_SIZE(bytes)), 1, true};
}

siri::State view_of_text(PyObject* text) {
#if PY_VERSION_HEX < 0x030C0000
    if (PyUnicode_READY(text) != 0) throw py::error_already_set();  // older Pythons have texts in a deferred form
#endif
    const auto* data = static_cast<const unsigned char*>(PyUnicode_DATA(text));
    const auto width = static_cast<unsigned char>(PyUnicode_KIND(text));
    return {data, static_cast<std::size_t>(PyUnicode_GET_LENGTH(text)), width, PyUnicode_IS_ASCII(text) != 0};
}

// The GIL is let go of while this lives.
//
// Pythons before 3.14 end a daemon thread that asks for the GIL while the interpreter shuts down: pthread_exit unwinds
// its stack, which aborts the process where it meets a destructor that may not throw, as that of py::gil_scoped_release
// is. Such a thread waits here for the end of the process, as it does in later Pythons; once caught, its exception must
// not get lost either.
class WithoutGil {
  public:
    WithoutGil() : state_(PyEval_SaveThread()) {}
    WithoutGil(const WithoutGil&) = delete;
    WithoutGil& operator=(const WithoutGil&) = delete;
    ~WithoutGil() {
        if (state_ != nullptr) restore();
    }

    // Throws what one of Python's signal handlers raises, KeyboardInterrupt for one, and then keeps the GIL.
    void run_signal_handlers() {
        restore();
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        state_ = PyEval_SaveThread();
    }

  private:
    void restore() {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) pause();
        }
        state_ = nullptr;
    }

    PyThreadState* state_;
};

// States to read without the GIL. A tuple of our own holds the objects: a list could be emptied by another thread.
class States {
  public:
    States(const py::object& source, const std::optional<Int64Array>& offsets) {
        if (offsets) {
            init_buffer(source, *offsets);
        } else {
            init_objects(source);
        }
    }

    const std::vector<siri::State>& views() const { return views_; }

  private:
    void init_objects(const py::object& source) {
        objects_ = py::tuple(source);
        views_.reserve(objects_.size());
        const bool texts = objects_.size() > 0 && PyUnicode_Check(objects_[0].ptr());
        for (const py::handle state : objects_) {
            const bool is_text = PyUnicode_Check(state.ptr());
            if (is_text != texts || !(is_text || PyBytes_Check(state.ptr()))) refuse(state);
            views_.push_back(is_text ? view_of_text(state.ptr()) : view_of_bytes(state.ptr()));
        }
    }

    [[noreturn]] void refuse(py::handle state) const {
        std::string message = "states[" + std::to_string(views_.size()) + "] is of type " + type_name(state);
        if (!views_.empty()) message += " and states[0] of type " + type_name(objects_[0]);
        throw py::type_error(message + ": states are all bytes or all str, or one buffer with offsets");
    }

    void init_buffer(const py::object& source, const Int64Array& offsets) {
        buffer_ = py::cast<py::buffer>(source).request();
        if (buffer_.ndim != 1 || buffer_.itemsize != 1 || (buffer_.size > 1 && buffer_.strides[0] != 1)) {
            throw py::type_error("states is not a contiguous buffer of single bytes");
        }
        const auto* data = static_cast<const unsigned char*>(buffer_.ptr);
        const auto at = offsets.unchecked<1>();
        views_.reserve(static_cast<std::size_t>(at.shape(0)));
        for (py::ssize_t n = 0; n + 1 < at.shape(0); ++n) {
            const bool inside = 0 <= at(n) && at(n) <= at(n + 1) && at(n + 1) <= buffer_.size;
            if (!inside) throw py::index_error("offsets leave states");
            views_.push_back({data + at(n), static_cast<std::size_t>(at(n + 1) - at(n)), 1, true});
        }
    }

    py::tuple objects_;
    py::buffer_info buffer_;
    std::vector<siri::State> views_;
};

py::array_t<std::uint64_t> hash_states(const py::object& source, const std::optional<Int64Array>& offsets,
                                       std::size_t threads) {
    const States states(source, offsets);
    static_assert(sizeof(siri::Key) == 2 * sizeof(std::uint64_t));
    py::array_t<std::uint64_t> keys({static_cast<py::ssize_t>(states.views().size()), py::ssize_t{2}});
    auto* out = reinterpret_cast<siri::Key*>(keys.mutable_data());
    const WithoutGil released;
    siri::hash_states(states.views(), out, threads);
    return keys;
}

std::vector<std::int64_t> first_members(const std::vector<siri::State>& states, const std::int64_t* task_group,
                                        std::optional<double> similarity, std::size_t threads, unsigned hash_bits,
                                        const std::function<void()>& poll) {
    std::vector<std::int64_t> first = siri::first_equal(states, task_group, threads, hash_bits);
    if (!similarity) return first;
    // Of equal states one is clustered: the others would join the same cluster.
    std::vector<std::int64_t> distinct, groups, place(states.size());
    std::vector<siri::State> kept;
    for (std::size_t n = 0; n < first.size(); ++n) {
        if (first[n] != static_cast<std::int64_t>(n)) continue;
        place[n] = static_cast<std::int64_t>(kept.size());
        distinct.push_back(first[n]);
        kept.push_back(states[n]);
        if (task_group != nullptr) groups.push_back(task_group[n]);
    }
    const std::int64_t* kept_groups = task_group == nullptr ? nullptr : groups.data();
    const std::vector<std::int64_t> founder = siri::first_similar(kept, kept_groups, *similarity, threads, poll);
    for (std::int64_t& member : first) member = distinct[founder[place[member]]];
    return first;
}

Int64Array group_states(const py::object& source, const std::optional<Int64Array>& offsets,
                        const std::optional<Int64Array>& task_group, std::optional<double> similarity,
                        std::size_t threads, unsigned hash_bits) {
    const States states(source, offsets);
    const auto count = static_cast<py::ssize_t>(states.views().size());
    if (task_group && (task_group->ndim() != 1 || task_group->shape(0) != count)) {
        throw py::value_error("task_group has " + std::to_string(task_group->size()) + " labels and states has " +
                              std::to_string(count) + ": give one label a state");
    }
    Int64Array labels(count);
    std::int64_t* out = labels.mutable_data();
    const std::int64_t* groups = task_group ? task_group->data() : nullptr;
    WithoutGil released;
    const auto poll = [&released] { released.run_signal_handlers(); };
    siri::label_in_order(first_members(states.views(), groups, similarity, threads, hash_bits, poll), out);
    return labels;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "Hashing and grouping of states. Use siri.engine.native, which checks and documents.";
    module.attr("COMPILER") =
#if defined(__clang__)
        "clang " __clang_version__;
#else
        "gcc " __VERSION__;
#endif
    module.def("hash_states", &hash_states, py::arg("states"), py::arg("offsets").none(true), py::arg("threads"));
    module.def("group_states", &group_states, py::arg("states"), py::arg("offsets").none(true),
               py::arg("task_group").none(true), py::arg("similarity").none(true), py::arg("threads"),
               py::arg("hash_bits") = 64);
}
