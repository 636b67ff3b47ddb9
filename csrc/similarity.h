// Clusters of similar states, equal to those that Python's difflib gives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "anchor_hash.h"

namespace siri {

// first[n]: the state whose cluster state n joins. Within its task group (all one where `task_group` is null), in
// order, each state joins the first cluster whose founder has
//     SequenceMatcher(None, state, founder).ratio() >= threshold;
// if there is none, it founds one (first[n] = n). Equal states may occur, but each costs a comparison: pass distinct
// ones.
//
// A text is compared by code points, bytes by bytes. Task groups are shared out over `threads` threads. Ten times a
// second poll() is called on the calling thread; what it throws ends the call.
// Throws std::length_error for a state of 2^31 characters or more.
std::vector<std::int64_t> first_similar(const std::vector<State>& states, const std::int64_t* task_group,
                                        double threshold, std::size_t threads, const std::function<void()>& poll);

}  // namespace siri
