// difflib.SequenceMatcher(None, a, b).ratio() >= threshold, decided without always counting to the end.
//
// The ratio is 2 M / T: T characters in both texts, M of them in matching blocks, found by Ratcliff and Obershelp's
// recursion: the longest common block of two spans (the one that starts first in a, and of these first in b), then the
// same to its left and to its right. In a `b` of n >= 200 characters, those that occur more than n / 100 + 1 times are
// "popular": the search for the longest block takes them for different from everything, and only its result is extended
// over them. That makes the ratio asymmetric. Described from the behaviour of difflib, whose results are the oracle.
#include "similarity.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>

#include "parallel.h"

namespace siri {
namespace {

using u32 = std::uint32_t;

constexpr std::size_t AUTOJUNK_LENGTH = 200;
// Below this many characters a thread costs more than it saves.
constexpr std::size_t CHARACTERS_A_THREAD = 4096;
// Searching for so many characters takes from a millisecond to some tenths of a second.
constexpr std::size_t CHARACTERS_A_LOOK = 1 << 16;

// A founder of a cluster, prepared for being compared with. Its characters are numbered from 1, rare ones first.
struct Founder {
    std::int64_t state;
    std::vector<u32> points;     // [D] code point of each number: its distinct characters
    std::vector<u32> text;       // [n] numbers of its characters
    std::vector<u32> starts;     // [D + 1] of each number in `positions`
    std::vector<u32> positions;  // [n] where each number occurs, ascending
    u32 num_rare;                // numbers above this one are popular

    u32 count(std::size_t number) const { return starts[number] - starts[number - 1]; }
};

struct Span {
    u32 a_begin, a_end, b_begin, b_end;

    u32 bound() const { return std::min(a_end - a_begin, b_end - b_begin); }
};

struct Block {
    u32 a, b, size;
};

// Whether a call is to end before it is done. All its threads ask, and the one that made this polls.
class Stop {
  public:
    explicit Stop(const std::function<void()>& poll) : poll_(poll) {}

    // Throws what poll() does.
    bool wanted() {
        if (std::this_thread::get_id() == caller_ && std::chrono::steady_clock::now() >= next_poll_) {
            next_poll_ = std::chrono::steady_clock::now() + PERIOD;
            try {
                poll_();
            } catch (...) {
                wanted_ = true;
                throw;
            }
        }
        return wanted_;
    }

  private:
    static constexpr std::chrono::milliseconds PERIOD{100};
    const std::function<void()>& poll_;
    const std::thread::id caller_ = std::this_thread::get_id();
    std::chrono::steady_clock::time_point next_poll_ = std::chrono::steady_clock::now() + PERIOD;
    std::atomic<bool> wanted_{false};
};

// The clusters of one task group.
class Clusters {
  public:
    Clusters(double threshold, Stop& stop) : threshold_(threshold), stop_(stop) {}

    // Whether the call is to end, when any result will do; `characters` are going to be searched for.
    bool stopped(std::size_t characters) {
        searched_ += characters;
        if (searched_ < CHARACTERS_A_LOOK) return false;
        if (stop_.wanted()) return true;
        searched_ = 0;
        return false;
    }

    // The founder of the cluster that `text` joins; `state` itself if it founds one.
    std::int64_t join(std::int64_t state, const std::vector<u32>& text) {
        for (const u32 point : text) {
            if (point >= row_count_.size()) {
                row_count_.resize(point + 1);
                number_of_.resize(point + 1);
            }
        }
        for (const u32 point : text) ++row_count_[point];
        const auto near = [&](const Founder& founder) { return is_near(text, founder); };
        const auto found = std::find_if(founders_.begin(), founders_.end(), near);
        const std::int64_t founder = found == founders_.end() ? state : found->state;
        if (found == founders_.end()) founders_.push_back(prepared(state, text));
        for (const u32 point : text) row_count_[point] = 0;
        return founder;
    }

  private:
    // Whether so many characters in matching blocks reach the threshold, by the floating-point expression of difflib:
    // it never falls when `matching` grows, so bounds of `matching` may be put into it.
    bool reaches(std::size_t matching, std::size_t total) const {
        const double ratio = total == 0 ? 1.0 : 2.0 * static_cast<double>(matching) / static_cast<double>(total);
        return ratio >= threshold_;
    }

    bool is_near(const std::vector<u32>& text, const Founder& founder) {
        const std::size_t total = text.size() + founder.text.size();
        if (!reaches(std::min(text.size(), founder.text.size()), total)) return false;
        std::size_t common = 0;  // characters of a that could be paired with one of b, wherever they stand
        for (std::size_t number = 1; number <= founder.points.size(); ++number) {
            common += std::min(row_count_[founder.points[number - 1]], founder.count(number));
        }
        if (!reaches(common, total)) return false;

        for (std::size_t i = 0; i < founder.points.size(); ++i) number_of_[founder.points[i]] = static_cast<u32>(i + 1);
        row_.resize(text.size());
        std::transform(text.begin(), text.end(), row_.begin(), [this](u32 point) { return number_of_[point]; });
        for (const u32 point : founder.points) number_of_[point] = 0;
        return blocks_reach(founder, total);
    }

    // The recursion, on a stack of spans still to be searched. It ends as soon as what was found reaches the threshold,
    // or what all spans could still give does not.
    bool blocks_reach(const Founder& founder, std::size_t total) {
        spans_.assign(1, {0, static_cast<u32>(row_.size()), 0, static_cast<u32>(founder.text.size())});
        std::size_t found = 0, possible = spans_[0].bound();
        while (!reaches(found, total)) {
            if (spans_.empty() || !reaches(possible, total)) return false;
            const Span span = spans_.back();
            spans_.pop_back();
            if (stopped(span.a_end - span.a_begin)) return false;
            const Block block = longest_block(founder, span);
            possible -= span.bound();
            if (block.size == 0) continue;
            const Span left{span.a_begin, block.a, span.b_begin, block.b};
            const Span right{block.a + block.size, span.a_end, block.b + block.size, span.b_end};
            found += block.size;
            possible += block.size + left.bound() + right.bound();
            if (left.bound() > 0) spans_.push_back(left);
            if (right.bound() > 0) spans_.push_back(right);
        }
        return true;
    }

    // The longest common block of rare characters, then extended over whatever is equal beside it. If there is none,
    // the empty one at the beginning of the span is extended.
    Block longest_block(const Founder& founder, const Span& span) {
        const u32* a = row_.data();
        const u32* b = founder.text.data();
        const bool is_long = span.a_end - span.a_begin > CHARACTERS_A_LOOK;
        Block best = is_long ? longest_rare_block<true>(founder, span) : longest_rare_block<false>(founder, span);
        while (best.a > span.a_begin && best.b > span.b_begin && a[best.a - 1] == b[best.b - 1]) {
            --best.a, --best.b, ++best.size;
        }
        while (best.a + best.size < span.a_end && best.b + best.size < span.b_end &&
               a[best.a + best.size] == b[best.b + best.size]) {
            ++best.size;
        }
        return best;
    }

    // A block longer than the best one, that starts at or after a[begin], covers a[begin + best.size]. So only the
    // occurrences of that character are looked at, and where they lead to a longer block, all blocks that start up to
    // there have been seen. Of equally long ones the first in a and then in b is kept, as later ones must be longer.
    //
    // A call in this loop costs 5 to 60% of a comparison of 1600 characters, so only the search of long spans has one.
    template <bool IsLong>
    Block longest_rare_block(const Founder& founder, const Span& span) {
        const u32* a = row_.data();
        const u32* b = founder.text.data();
        const auto rare_and_equal = [&](u32 i, u32 j) { return a[i] == b[j] && a[i] <= founder.num_rare; };
        Block best{span.a_begin, span.b_begin, 0};
        u32 rows = 0;
        for (u32 begin = span.a_begin; best.size < span.a_end - begin;) {
            if (IsLong && ++rows % 64 == 0 && stopped(CHARACTERS_A_LOOK)) break;
            const u32 row = begin + best.size;
            const u32 number = a[row];
            if (number != 0 && number <= founder.num_rare) {
                const u32* position = founder.positions.data() + founder.starts[number - 1];
                const u32* const end = founder.positions.data() + founder.starts[number];
                for (position = std::lower_bound(position, end, span.b_begin); position < end; ++position) {
                    if (*position >= span.b_end) break;
                    u32 i = row, j = *position, stop = row + 1;
                    while (i > begin && j > span.b_begin && rare_and_equal(i - 1, j - 1)) --i, --j;
                    u32 b_stop = *position + 1;
                    while (stop < span.a_end && b_stop < span.b_end && rare_and_equal(stop, b_stop)) ++stop, ++b_stop;
                    const u32 size = stop - i;
                    // Positions go by b, so of this row's blocks the first in a may come after a later one. A best
                    // block of an earlier row starts before `begin`, so it is never replaced by one as long.
                    if (size > best.size || (size == best.size && i < best.a)) best = {i, j, size};
                }
            }
            begin = row + 1;
        }
        return best;
    }

    // Of the row being joined, while `row_count_` holds its counts.
    Founder prepared(std::int64_t state, const std::vector<u32>& text) {
        Founder founder{state, {}, std::vector<u32>(text.size()), {}, std::vector<u32>(text.size()), 0};
        const std::size_t most = text.size() < AUTOJUNK_LENGTH ? text.size() : text.size() / 100 + 1;
        points_.clear();
        for (const bool rare : {true, false}) {
            for (const u32 point : text) {
                if ((row_count_[point] <= most) != rare || number_of_[point] != 0) continue;
                points_.push_back(point);
                number_of_[point] = static_cast<u32>(points_.size());
            }
            if (rare) founder.num_rare = static_cast<u32>(points_.size());
        }
        founder.points = points_;
        founder.starts.resize(points_.size() + 1, static_cast<u32>(text.size()));
        u32 end = 0;
        for (std::size_t i = 0; i < points_.size(); ++i) founder.starts[i] = end += row_count_[points_[i]];
        // Backwards, each start moves from the end of its positions to their beginning.
        for (std::size_t i = text.size(); i-- > 0;) {
            const u32 number = number_of_[text[i]];
            founder.text[i] = number;
            founder.positions[--founder.starts[number - 1]] = static_cast<u32>(i);
        }
        for (const u32 point : points_) number_of_[point] = 0;
        return founder;
    }

    double threshold_;
    Stop& stop_;
    std::size_t searched_ = CHARACTERS_A_LOOK;
    std::vector<Founder> founders_;
    // By code point, as far as one was seen; all 0 when they are not in use.
    std::vector<u32> row_count_;  // how often it occurs in the row being joined
    std::vector<u32> number_of_;  // its number in the founder at hand
    // Used again and again, so that their memory is.
    std::vector<u32> points_;
    std::vector<u32> row_;        // the row in numbers of that founder, 0 for what does not occur there
    std::vector<Span> spans_;
};

template <class Unit>
void copy_points(const State& state, std::vector<u32>& points) {
    for (std::size_t i = 0; i < state.length; ++i) {
        Unit unit;
        std::memcpy(&unit, state.data + i * sizeof unit, sizeof unit);
        points[i] = unit;
    }
}

void read_points(const State& state, std::vector<u32>& points) {
    points.resize(state.length);
    if (state.width == 1) copy_points<std::uint8_t>(state, points);
    if (state.width == 2) copy_points<std::uint16_t>(state, points);
    if (state.width == 4) copy_points<std::uint32_t>(state, points);
}

// Indices of the states of each task group, in order; the groups in order of appearance.
std::vector<std::vector<std::size_t>> members_by_group(std::size_t count, const std::int64_t* task_group) {
    std::vector<std::vector<std::size_t>> members;
    std::unordered_map<std::int64_t, std::size_t> group_of;
    for (std::size_t n = 0; n < count; ++n) {
        const auto [entry, is_new] = group_of.try_emplace(task_group == nullptr ? 0 : task_group[n], members.size());
        if (is_new) members.emplace_back();
        members[entry->second].push_back(n);
    }
    return members;
}

}  // namespace

std::vector<std::int64_t> first_similar(const std::vector<State>& states, const std::int64_t* task_group,
                                        double threshold, std::size_t threads, const std::function<void()>& poll) {
    std::size_t characters = 0;
    for (const State& state : states) {
        characters += state.length;
        if (state.length >= std::size_t{1} << 31) {
            throw std::length_error("states holds one of " + std::to_string(state.length) +
                                    " characters: similarity takes fewer than 2^31. Group equal states instead");
        }
    }
    const auto members = members_by_group(states.size(), task_group);
    std::vector<std::int64_t> first(states.size());
    threads = std::min(threads, characters / CHARACTERS_A_THREAD + 1);
    Stop stop(poll);
    const auto cluster = [&](std::size_t group, std::size_t) {
        Clusters clusters(threshold, stop);
        std::vector<u32> text;
        for (const std::size_t n : members[group]) {
            if (clusters.stopped(states[n].length)) return;
            read_points(states[n], text);
            first[n] = clusters.join(static_cast<std::int64_t>(n), text);
        }
    };
    parallel_for(members.size(), 1, threads, cluster, [&stop] { stop.wanted(); });
    return first;
}

}  // namespace siri
