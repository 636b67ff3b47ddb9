// Work shared out over threads. They live for one call: a pool would be gone in a forked child, and starting one thread
// costs some 30 us, which callers weigh against the work there is.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace siri {

// Calls work(begin, end) for chunks that cover [0, count), on `threads` threads of which the caller is one.
//
// Which thread does which chunk is left open, so `work` must not depend on it. The first exception ends the others
// after their chunk and is thrown here, when no thread is left. Where the system gives no more threads, or no memory for
// them, those there do the work.
template <class Work>
void parallel_for(std::size_t count, std::size_t chunk, std::size_t threads, const Work& work) {
    std::atomic<std::size_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error;
    std::mutex guard;
    const auto run = [&]() noexcept {
        try {
            while (!failed.load(std::memory_order_relaxed)) {
                const std::size_t begin = next.fetch_add(chunk, std::memory_order_relaxed);
                if (begin >= count) return;
                work(begin, std::min(begin + chunk, count));
            }
        } catch (...) {
            failed.store(true, std::memory_order_relaxed);
            const std::lock_guard<std::mutex> lock(guard);
            if (!error) error = std::current_exception();
        }
    };
    std::vector<std::thread> helpers;
    const std::size_t chunks = count / chunk + (count % chunk != 0);
    threads = std::min(threads, chunks);
    helpers.reserve(threads);
    try {
        while (helpers.size() + 1 < threads) helpers.emplace_back(run);
    } catch (...) {  // std::system_error or std::bad_alloc: what goes out of here would destroy threads that still run
    }
    run();
    for (std::thread& helper : helpers) helper.join();
    if (error) std::rethrow_exception(error);
}

}  // namespace siri
