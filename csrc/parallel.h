// Work shared out over threads. They live for one call: a pool would be gone in a forked child, and starting one thread
// costs some 30 us, which callers weigh against the work there is.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <future>
#include <mutex>
#include <vector>

namespace siri {

// Calls work(begin, end) for chunks that cover [0, count), on `threads` threads of which the caller is one.
//
// Which thread does which chunk is left open, so `work` must not depend on it. The first exception ends the others
// after their chunk and is thrown here, when no thread is left. Where the system gives no more threads, or no memory
// for them, those there do the work. While the caller only waits for the others, it calls wait() ten times a second.
template <class Work, class Wait>
void parallel_for(std::size_t count, std::size_t chunk, std::size_t threads, const Work& work, const Wait& wait) {
    std::atomic<std::size_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error;
    std::mutex guard;
    const auto guarded = [&](const auto& act) noexcept {
        try {
            act();
        } catch (...) {
            failed.store(true, std::memory_order_relaxed);
            const std::lock_guard<std::mutex> lock(guard);
            if (!error) error = std::current_exception();
        }
    };
    const auto all_chunks = [&] {
        while (!failed.load(std::memory_order_relaxed)) {
            const std::size_t begin = next.fetch_add(chunk, std::memory_order_relaxed);
            if (begin >= count) return;
            work(begin, std::min(begin + chunk, count));
        }
    };
    std::vector<std::future<void>> helpers;
    const std::size_t chunks = count / chunk + (count % chunk != 0);
    threads = std::min(threads, chunks);
    helpers.reserve(threads);
    try {
        while (helpers.size() + 1 < threads) {
            helpers.push_back(std::async(std::launch::async, [&] { guarded(all_chunks); }));
        }
    } catch (...) {  // std::system_error or std::bad_alloc
    }
    guarded(all_chunks);
    for (const std::future<void>& helper : helpers) {
        while (helper.wait_for(std::chrono::milliseconds(100)) != std::future_status::ready) {
            if (!failed.load(std::memory_order_relaxed)) guarded(wait);
        }
    }
    if (error) std::rethrow_exception(error);
}

template <class Work>
void parallel_for(std::size_t count, std::size_t chunk, std::size_t threads, const Work& work) {
    parallel_for(count, chunk, threads, work, [] {});
}

}  // namespace siri
