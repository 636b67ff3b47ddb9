// Keys of states, and groups of equal ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace siri {

// One state, in memory that the caller keeps. A Python str is stored with 1, 2 or 4 bytes a character, whichever is the
// least that holds its largest, so equal texts have equal widths and equal memory.
struct State {
    const unsigned char* data;
    std::size_t length;   // code units
    unsigned char width;  // bytes of a code unit: 1 (bytes, Latin-1), 2 or 4 (code points)
    bool plain;           // its memory is what gets hashed: bytes, or ASCII

    std::size_t size() const { return length * width; }  // bytes
};

struct Key {
    std::uint64_t low, high;
};

// XXH3-128 with seed 0, after the specification in version 0.2.0 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md).
Key xxh3_128(const unsigned char* data, std::size_t size);

// keys[n]: the hash of state n; of a text, that of its UTF-8, where a lone surrogate has three bytes as any other code
// point of its range ("surrogatepass").
void hash_states(const std::vector<State>& states, Key* keys, std::size_t threads);

// first[n]: the smallest index with the same bytes and the same task group (all the same where `task_group` is null).
// Hashes only say where to look; bytes decide. Tests hash with fewer than 64 bits, to have collisions.
std::vector<std::int64_t> first_equal(const std::vector<State>& states, const std::int64_t* task_group,
                                      std::size_t threads, unsigned hash_bits = 64);

// Labels 0, 1, ... in order of appearance, of groups given by a member that is not behind the others: first[n] <= n.
void label_in_order(const std::vector<std::int64_t>& first, std::int64_t* labels);

}  // namespace siri
