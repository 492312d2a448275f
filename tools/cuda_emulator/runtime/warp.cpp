// Operations of a warp: the lanes of a mask meet, and the last to come does the work for all.
#include "worker.h"

namespace emu {

void Worker::warp_operation(uint32_t mask, Operation operation, Where where) {
    Fiber& fiber = *static_cast<Fiber*>(thread);
    Warp& warp = *fiber.warp;
    if (!(mask >> fiber.lane & 1))
        emu::fail(where, "the mask %08x of an operation of the warp lacks the calling lane %u", mask,
                  fiber.lane);
    Slot& slot = fiber.slot();
    slot.operation = operation, slot.mask = mask, slot.where = where;
    fiber.state = Fiber::AT_WARP, fiber.where = where;
    warp.arrived |= 1u << fiber.lane;
    const uint32_t lanes = mask & warp.existing & ~warp.exited;
    if ((warp.arrived & lanes) == lanes) finish_operation(warp, lanes, &fiber);
    else wait(fiber);
}

void Worker::finish_operation(Warp& warp, uint32_t lanes, Fiber* running) {
    const Slot& first = warp.slots[__builtin_ctz(lanes)];
    for (uint32_t left = lanes; left; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        const Slot& slot = warp.slots[lane];
        if (slot.operation != first.operation || slot.mask != first.mask ||
            slot.where.line != first.where.line)
            emu::fail(slot.where,
                      "divergent operation of the warp: lane %d is at line %d with mask %08x, "
                      "lane %d at line %d with mask %08x",
                      lane, slot.where.line, slot.mask, __builtin_ctz(lanes), first.where.line, first.mask);
    }
    if (first.operation) first.operation(warp, lanes);
    warp.arrived &= ~lanes;
    warp.epoch++;
    const bool reverse = launch_->parameters.order == 1;
    for (uint32_t left = lanes; left;) {
        const int lane = reverse ? 31 - __builtin_clz(left) : __builtin_ctz(left);
        left &= ~(1u << lane);
        make_ready(warp.slots[lane].fiber, running);
    }
}

namespace {

template <class F> void each(uint32_t lanes, F f) {
    for (; lanes; lanes &= lanes - 1) f(__builtin_ctz(lanes));
}

Slot& meet(uint32_t mask, const void* value, size_t bytes, int source, Operation operation, Where where) {
    Slot& slot = static_cast<Fiber*>(thread)->slot();
    memcpy(slot.in, value, bytes);
    slot.source = source;
    Worker::mine().warp_operation(mask, operation, where);
    return slot;
}

void do_shuffle(Warp& warp, uint32_t lanes) {
    each(lanes, [&](int lane) {
        Slot& slot = warp.slots[lane];
        if (!(lanes >> slot.source & 1))
            fail(slot.where, "lane %d reads from lane %d, which takes no part", lane, slot.source);
        memcpy(slot.out, warp.slots[slot.source].in, 8);
    });
}

uint32_t value_of(const Warp& warp, int lane) {
    uint32_t value;
    memcpy(&value, warp.slots[lane].in, sizeof value);
    return value;
}

void answer(Warp& warp, int lane, uint32_t result) { memcpy(warp.slots[lane].out, &result, sizeof result); }

void do_ballot(Warp& warp, uint32_t lanes) {
    uint32_t votes = 0;
    each(lanes, [&](int lane) { votes |= value_of(warp, lane) << lane; });
    each(lanes, [&](int lane) { answer(warp, lane, votes); });
}

void do_match(Warp& warp, uint32_t lanes) {
    each(lanes, [&](int lane) {
        uint32_t same = 0;
        each(lanes,
             [&](int other) { same |= uint32_t(value_of(warp, other) == value_of(warp, lane)) << other; });
        answer(warp, lane, same);
    });
}

uint32_t combine(Reduce operation, uint32_t a, uint32_t b) {
    switch (operation) {
        case Reduce::ADD: return a + b;
        case Reduce::MIN: return a < b ? a : b;
        case Reduce::MAX: return a > b ? a : b;
        case Reduce::MIN_SIGNED: return int32_t(a) < int32_t(b) ? a : b;
        case Reduce::MAX_SIGNED: return int32_t(a) > int32_t(b) ? a : b;
        case Reduce::AND: return a & b;
        case Reduce::OR: return a | b;
        default: return a ^ b;
    }
}

void do_reduce(Warp& warp, uint32_t lanes) {
    const int first = __builtin_ctz(lanes);
    const Reduce operation = Reduce(warp.slots[first].source);
    uint32_t result = value_of(warp, first);
    each(lanes & (lanes - 1), [&](int lane) { result = combine(operation, result, value_of(warp, lane)); });
    each(lanes, [&](int lane) { answer(warp, lane, result); });
}

uint32_t number(const Slot& slot) {
    uint32_t value;
    memcpy(&value, slot.out, sizeof value);
    return value;
}

}  // namespace

void warp_barrier(uint32_t mask, Where where) { Worker::mine().warp_operation(mask, nullptr, where); }

void shuffle(uint32_t mask, void* value, size_t bytes, int source, Where where) {
    memcpy(value, meet(mask, value, bytes, source, do_shuffle, where).out, bytes);
}

uint32_t ballot(uint32_t mask, bool predicate, Where where) {
    const uint32_t vote = predicate;
    return number(meet(mask, &vote, sizeof vote, 0, do_ballot, where));
}

uint32_t match_any(uint32_t mask, uint32_t value, Where where) {
    return number(meet(mask, &value, sizeof value, 0, do_match, where));
}

uint32_t reduce(uint32_t mask, uint32_t value, Reduce operation, Where where) {
    return number(meet(mask, &value, sizeof value, int(operation), do_reduce, where));
}

}  // namespace emu
