// XXH3-128 in plain C++ that a compiler can vectorise, and a hash table of states divided among threads.
#include "anchor_hash.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <iterator>
#include <random>

#include "parallel.h"

namespace siri {
namespace {

using u32 = std::uint32_t;
using u64 = std::uint64_t;
__extension__ typedef unsigned __int128 u128;
using Bytes = const unsigned char*;

// The work that pays for a thread: it takes some 30 us to start, in which the hash reads 300 kB.
constexpr std::size_t BYTES_A_THREAD = std::size_t{1} << 18;

constexpr u64 PRIME32_1 = 0x9E3779B1, PRIME32_2 = 0x85EBCA77, PRIME32_3 = 0xC2B2AE3D;
constexpr u64 PRIME64_1 = 0x9E3779B185EBCA87, PRIME64_2 = 0xC2B2AE3D27D4EB4F, PRIME64_3 = 0x165667B19E3779F9;
constexpr u64 PRIME64_4 = 0x85EBCA77C2B2AE63, PRIME64_5 = 0x27D4EB2F165667C5;
constexpr u64 PRIME_MX1 = 0x165667919E3779F9, PRIME_MX2 = 0x9FB21C651E98DF25;

constexpr std::size_t STRIPE = 64, SECRET_SIZE = 192;
constexpr std::size_t STRIPES_A_BLOCK = (SECRET_SIZE - STRIPE) / 8, BLOCK = STRIPES_A_BLOCK * STRIPE;

inline u32 read32(Bytes from) {
    return u32{from[0]} | u32{from[1]} << 8 | u32{from[2]} << 16 | u32{from[3]} << 24;
}

// Little-endian on every machine. Not spelled out as read32 is: compilers vectorise the stripe loop over a memcpy only.
inline u64 read64(Bytes from) {
    u64 word;
    std::memcpy(&word, from, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

struct Secret {
    alignas(64) unsigned char bytes[SECRET_SIZE];

    u64 operator()(std::size_t offset) const { return read64(bytes + offset); }
};

constexpr Secret XXH3_SECRET{{
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
}};

inline u64 low_half(u128 product) { return static_cast<u64>(product); }
inline u64 high_half(u128 product) { return static_cast<u64>(product >> 64); }
inline u64 folded(u64 a, u64 b) { return low_half(u128{a} * b) ^ high_half(u128{a} * b); }

inline u64 avalanche(u64 x) {
    x = (x ^ x >> 37) * PRIME_MX1;
    return x ^ x >> 32;
}

inline u64 avalanche_xxh64(u64 x) {
    x = (x ^ x >> 33) * PRIME64_2;
    x = (x ^ x >> 29) * PRIME64_3;
    return x ^ x >> 32;
}

Key hash_1_to_3(const Secret& secret, Bytes data, std::size_t size) {
    const u32 mixed = data[size - 1] | static_cast<u32>(size) << 8 | u32{data[0]} << 16 | u32{data[size >> 1]} << 24;
    const u32 swapped = __builtin_bswap32(mixed);
    const u64 low = u64{read32(secret.bytes) ^ read32(secret.bytes + 4)} ^ mixed;
    const u64 high = u64{read32(secret.bytes + 8) ^ read32(secret.bytes + 12)} ^ (swapped << 13 | swapped >> 19);
    return {avalanche_xxh64(low), avalanche_xxh64(high)};
}

Key hash_4_to_8(const Secret& secret, Bytes data, std::size_t size) {
    const u64 ends = u64{read32(data)} | u64{read32(data + size - 4)} << 32;
    const u128 product = u128{ends ^ secret(16) ^ secret(24)} * (PRIME64_1 + (u64{size} << 2));
    const u64 high = high_half(product) + (low_half(product) << 1);
    u64 low = low_half(product) ^ high >> 3;
    low = (low ^ low >> 35) * PRIME_MX2;
    return {low ^ low >> 28, avalanche(high)};
}

Key hash_9_to_16(const Secret& secret, Bytes data, std::size_t size) {
    const u64 last = read64(data + size - 8);
    const u64 both = read64(data) ^ last ^ secret(32) ^ secret(40), one = last ^ secret(48) ^ secret(56);
    const u128 product = u128{both} * PRIME64_1;
    const u64 high = high_half(product) + one + u64{static_cast<u32>(one)} * (PRIME32_2 - 1);
    const u64 low = (low_half(product) + (u64{size - 1} << 54)) ^ __builtin_bswap64(high);
    const u128 second = u128{low} * PRIME64_2;
    return {avalanche(low_half(second)), avalanche(high_half(second) + high * PRIME64_2)};
}

inline u64 mix(const Secret& secret, Bytes data, std::size_t offset) {
    return folded(read64(data) ^ secret(offset), read64(data + 8) ^ secret(offset + 8));
}

inline void mix_two(const Secret& secret, Key& sum, Bytes one, Bytes two, std::size_t offset) {
    sum.low = (sum.low + mix(secret, one, offset)) ^ (read64(two) + read64(two + 8));
    sum.high = (sum.high + mix(secret, two, offset + 16)) ^ (read64(one) + read64(one + 8));
}

// Inlined, these are a tenth faster with the constant secret.
[[gnu::always_inline]] inline Key hash_17_to_240(const Secret& secret, Bytes data, std::size_t size) {
    Key sum{size * PRIME64_1, 0};
    if (size <= 128) {
        for (std::size_t i = (size - 1) / 32 + 1; i-- > 0;) {
            mix_two(secret, sum, data + 16 * i, data + size - 16 * i - 16, 32 * i);
        }
    } else {
        for (std::size_t i = 0; i < 4; ++i) mix_two(secret, sum, data + 32 * i, data + 32 * i + 16, 32 * i);
        sum = {avalanche(sum.low), avalanche(sum.high)};
        for (std::size_t i = 4; i < size / 32; ++i) {
            mix_two(secret, sum, data + 32 * i, data + 32 * i + 16, 32 * (i - 4) + 3);
        }
        mix_two(secret, sum, data + size - 16, data + size - 32, 103);
    }
    const u64 high = sum.low * PRIME64_1 + sum.high * PRIME64_4 + size * PRIME64_2;
    return {avalanche(sum.low + sum.high), 0 - avalanche(high)};
}

inline void add_stripe(u64* __restrict sums, Bytes stripe, Bytes key) {
    u64 words[8], products[8];
    for (std::size_t i = 0; i < 8; ++i) words[i] = read64(stripe + 8 * i);
    for (std::size_t i = 0; i < 8; ++i) {
        const u64 keyed = words[i] ^ read64(key + 8 * i);
        products[i] = (keyed & 0xFFFFFFFF) * (keyed >> 32);
    }
    for (std::size_t i = 0; i < 8; ++i) sums[i] += words[i ^ 1] + products[i];
}

u64 merged(const Secret& secret, const u64* sums, std::size_t offset, u64 start) {
    for (std::size_t i = 0; i < 8; i += 2) {
        start += folded(sums[i] ^ secret(offset + 8 * i), sums[i + 1] ^ secret(offset + 8 * i + 8));
    }
    return avalanche(start);
}

[[gnu::always_inline]] inline Key hash_long(const Secret& secret, Bytes data, std::size_t size) {
    u64 sums[8] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
    const Bytes last = data + size - STRIPE;
    std::size_t left = size;
    for (; left > BLOCK; left -= BLOCK, data += BLOCK) {
        for (std::size_t n = 0; n < STRIPES_A_BLOCK; ++n) add_stripe(sums, data + STRIPE * n, secret.bytes + 8 * n);
        for (std::size_t i = 0; i < 8; ++i) {
            sums[i] = (sums[i] ^ sums[i] >> 47 ^ secret(SECRET_SIZE - STRIPE + 8 * i)) * PRIME32_1;
        }
    }
    for (std::size_t n = 0; n < (left - 1) / STRIPE; ++n) add_stripe(sums, data + STRIPE * n, secret.bytes + 8 * n);
    add_stripe(sums, last, secret.bytes + SECRET_SIZE - STRIPE - 7);
    const u64 high = merged(secret, sums, SECRET_SIZE - STRIPE - 11, ~(size * PRIME64_2));
    return {merged(secret, sums, 11, size * PRIME64_1), high};
}

[[gnu::always_inline]] inline Key hash_with(const Secret& secret, Bytes data, std::size_t size) {
    if (size > 240) return hash_long(secret, data, size);
    if (size > 16) return hash_17_to_240(secret, data, size);
    if (size > 8) return hash_9_to_16(secret, data, size);
    if (size > 3) return hash_4_to_8(secret, data, size);
    if (size > 0) return hash_1_to_3(secret, data, size);
    return {avalanche_xxh64(secret(64) ^ secret(72)), avalanche_xxh64(secret(80) ^ secret(88))};
}

// For hashes that stay in the process: whoever writes states must not know which of them collide, and make grouping
// quadratic.
const Secret& secret_of_this_process() {
    static const Secret drawn = [] {
        std::random_device random;
        Secret secret;
        std::generate(std::begin(secret.bytes), std::end(secret.bytes), std::ref(random));
        return secret;
    }();
    return drawn;
}

template <class Unit>
void append_utf8(const State& text, std::vector<unsigned char>& out) {
    const auto put = [&out](u32 bits) { out.push_back(static_cast<unsigned char>(bits)); };
    for (std::size_t i = 0; i < text.length; ++i) {
        Unit unit;
        std::memcpy(&unit, text.data + i * sizeof unit, sizeof unit);
        const u32 point = unit;
        if (point < 0x80) {
            put(point);
            continue;
        }
        if (point < 0x800) {
            put(0xC0 | point >> 6);
        } else {
            if (point < 0x10000) {
                put(0xE0 | point >> 12);
            } else {
                put(0xF0 | point >> 18);
                put(0x80 | (point >> 12 & 0x3F));
            }
            put(0x80 | (point >> 6 & 0x3F));
        }
        put(0x80 | (point & 0x3F));
    }
}

Key hash_text(const State& text, std::vector<unsigned char>& utf8) {
    utf8.clear();
    if (text.width == 1) append_utf8<std::uint8_t>(text, utf8);
    if (text.width == 2) append_utf8<std::uint16_t>(text, utf8);
    if (text.width == 4) append_utf8<std::uint32_t>(text, utf8);
    return xxh3_128(utf8.data(), utf8.size());
}

std::size_t useful_threads(const std::vector<State>& states, std::size_t threads) {
    std::size_t bytes = 0;
    for (const State& state : states) bytes += state.size();
    return std::clamp<std::size_t>(threads, 1, bytes / BYTES_A_THREAD + 1);
}

// Small enough that a thread with large states does not end last, large enough that sharing them out costs nothing.
std::size_t chunk_of(std::size_t count, std::size_t threads) { return count / (16 * threads) + 1; }

bool same(const State& a, const State& b) {
    return a.length == b.length && a.width == b.width && (a.length == 0 || std::memcmp(a.data, b.data, a.size()) == 0);
}

// Indices of the states of one part, by hash: linear probing, at most half full.
class Table {
  public:
    explicit Table(std::size_t count) {
        std::size_t size = 16;
        while (size < 2 * count) size *= 2;
        slots_.assign(size, {0, -1});
    }

    // The index stored under `hash` for which `is_same` holds, or `index`, which is then stored.
    template <class IsSame>
    std::int64_t find_or_add(u64 hash, std::int64_t index, const IsSame& is_same) {
        for (std::size_t at = hash & (slots_.size() - 1);; at = (at + 1) & (slots_.size() - 1)) {
            Slot& slot = slots_[at];
            if (slot.index < 0) {
                slot = {hash, index};
                return index;
            }
            if (slot.hash == hash && is_same(slot.index)) return slot.index;
        }
    }

  private:
    struct Slot {
        u64 hash;
        std::int64_t index;
    };
    std::vector<Slot> slots_;
};

}  // namespace

Key xxh3_128(const unsigned char* data, std::size_t size) { return hash_with(XXH3_SECRET, data, size); }

void hash_states(const std::vector<State>& states, Key* keys, std::size_t threads) {
    threads = useful_threads(states, threads);
    parallel_for(states.size(), chunk_of(states.size(), threads), threads, [&](std::size_t begin, std::size_t end) {
        std::vector<unsigned char> utf8;
        for (std::size_t n = begin; n < end; ++n) {
            const State& state = states[n];
            keys[n] = state.plain ? xxh3_128(state.data, state.length) : hash_text(state, utf8);
        }
    });
}

std::vector<std::int64_t> first_equal(const std::vector<State>& states, const std::int64_t* task_group,
                                      std::size_t threads, unsigned hash_bits) {
    const std::size_t count = states.size();
    threads = useful_threads(states, threads);
    const Secret& secret = secret_of_this_process();
    std::vector<u64> hashes(count);
    const u64 mask = hash_bits < 64 ? (u64{1} << hash_bits) - 1 : ~u64{0};
    parallel_for(count, chunk_of(count, threads), threads, [&](std::size_t begin, std::size_t end) {
        for (std::size_t n = begin; n < end; ++n) {
            const u64 group = task_group == nullptr ? 0 : static_cast<u64>(task_group[n]);
            // Memory as it is: what is equal has equal memory, and these hashes are never seen outside.
            hashes[n] = (hash_with(secret, states[n].data, states[n].size()).low ^ avalanche(group)) & mask;
        }
    });
    // Equal states have equal hashes, so each thread can number the hashes of its part for itself, in order.
    std::vector<std::int64_t> first(count);
    const auto part_of = [threads](u64 hash) { return (hash >> 32) % threads; };
    parallel_for(threads, 1, threads, [&](std::size_t part, std::size_t) {
        std::size_t members = 0;
        for (const u64 hash : hashes) members += part_of(hash) == part;
        Table table(members);
        for (std::size_t n = 0; n < count; ++n) {
            if (part_of(hashes[n]) != part) continue;
            first[n] = table.find_or_add(hashes[n], static_cast<std::int64_t>(n), [&](std::int64_t other) {
                return (task_group == nullptr || task_group[n] == task_group[other]) && same(states[n], states[other]);
            });
        }
    });
    return first;
}

void label_in_order(const std::vector<std::int64_t>& first, std::int64_t* labels) {
    std::int64_t next = 0;
    for (std::size_t n = 0; n < first.size(); ++n) {
        labels[n] = first[n] == static_cast<std::int64_t>(n) ? next++ : labels[first[n]];
    }
}

}  // namespace siri
