// Memory between guard pages: the card's, and the shared memory of blocks. What is fresh is full of NaNs.
#include <cstdio>
#include <map>
#include <new>

#include <sys/mman.h>

#include "worker.h"

namespace emu {
namespace {

// As floats and halves NaN, and a huge number: sums show them.
constexpr unsigned char FRESH = 0xff, SLACK = 0xfe;
constexpr size_t WATCHED = 64;  // bytes in front of a shared array

size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

bool all(const char* begin, const char* end, unsigned char value) {
    for (; begin < end; begin++)
        if (static_cast<unsigned char>(*begin) != value) return false;
    return true;
}

struct Allocations {  // by address
    std::mutex mutex;
    std::map<char*, size_t> sizes;
};
Allocations& allocations() {
    static Allocations* here = new Allocations;  // never destroyed: threads may outlive the library's statics
    return *here;
}

constexpr size_t ALIGN = 256;  // as cudaMalloc's

}  // namespace

char* pages(size_t bytes, int protection) {
    void* memory = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    return static_cast<char*>(memory);
}

char* guarded_pages(size_t bytes) {
    char* memory = pages(bytes + 2 * GUARD, PROT_NONE) + GUARD;
    mprotect(memory, bytes, PROT_READ | PROT_WRITE);
    return memory;
}

// Flush with the guard page behind, but for the slack that alignment makes; null if the host has no memory.
extern "C" void* emu_allocate(uint64_t bytes) try {
    const size_t taken = rounded(bytes, ALIGN), whole = rounded(taken, PAGE);
    char* memory = guarded_pages(whole);
    char* begin = memory + whole - taken;
    memset(begin, FRESH, bytes);
    memset(begin + bytes, SLACK, taken - bytes);
    ASAN_POISON_MEMORY_REGION(memory, begin - memory);
    ASAN_POISON_MEMORY_REGION(begin + bytes, taken - bytes);
    std::lock_guard<std::mutex> lock(allocations().mutex);
    allocations().sizes[begin] = bytes;
    return begin;
} catch (const std::bad_alloc&) {
    return nullptr;
}

// 1: the slack behind the memory was written to.
extern "C" int emu_free(void* address) {
    char* begin = static_cast<char*>(address);
    size_t bytes;
    {
        std::lock_guard<std::mutex> lock(allocations().mutex);
        const auto entry = allocations().sizes.find(begin);
        bytes = entry->second;
        allocations().sizes.erase(entry);
    }
    const size_t taken = rounded(bytes, ALIGN), whole = rounded(taken, PAGE);
    char* memory = begin + taken - whole;
    ASAN_UNPOISON_MEMORY_REGION(memory, whole);
    const bool overrun = !all(begin + bytes, begin + taken, SLACK);
    munmap(memory - GUARD, whole + 2 * GUARD);
    return overrun;
}

void describe_address(const void* address, char* text, size_t size) {
    const char* p = static_cast<const char*>(address);
    if (const SharedRegion* region = Worker::mine().shared_near(address)) {
        snprintf(text, size, "address %p is %s a shared array of %zu bytes", address,
                 p < region->begin() ? "before" : "past the end of", region->bytes);
        return;
    }
    std::lock_guard<std::mutex> lock(allocations().mutex);
    auto next = allocations().sizes.upper_bound(const_cast<char*>(p));
    if (next != allocations().sizes.begin()) {
        const auto before = std::prev(next);
        const size_t past = p - (before->first + before->second);
        if (past < GUARD + ALIGN) {
            snprintf(text, size, "address %p is %zu bytes past the end of an array of %zu bytes", address,
                     past, before->second);
            return;
        }
    }
    if (next != allocations().sizes.end() && size_t(next->first - p) <= GUARD + PAGE)
        snprintf(text, size, "address %p is %zu bytes before an array of %zu bytes", address,
                 size_t(next->first - p), next->second);
    else snprintf(text, size, "address %p is in no array", address);
}

void* SharedRegion::take(const void* new_tag, size_t new_bytes, size_t new_align) {
    tag = new_tag, bytes = new_bytes, align = new_align;
    ASAN_UNPOISON_MEMORY_REGION(memory, MAX_SHARED);
    memset(begin(), FRESH, bytes);
    memset(begin() - WATCHED, SLACK, WATCHED);
    memset(begin() + bytes, SLACK, end() - begin() - bytes);
    ASAN_POISON_MEMORY_REGION(memory, begin() - memory);
    ASAN_POISON_MEMORY_REGION(begin() + bytes, end() - begin() - bytes);
    return begin();
}

bool SharedRegion::overrun() const {
    ASAN_UNPOISON_MEMORY_REGION(memory, MAX_SHARED);
    return !all(begin() - WATCHED, begin(), SLACK) || !all(begin() + bytes, end(), SLACK);
}

void* Worker::shared_array(const void* tag, size_t bytes, size_t align, Where where) {
    for (size_t i = 1; i < shared_used_; i++)
        if (shared_[i].tag == tag) return shared_[i].begin();
    static_bytes_ += rounded(bytes, align);
    const Parameters& p = launch_->parameters;
    if (static_bytes_ > STATIC_SHARED || static_bytes_ + p.dynamic_shared > p.max_shared)
        emu::fail(where, "%zu bytes of static and %u of dynamic shared memory are more than the card has",
                  static_bytes_, p.dynamic_shared);
    if (shared_used_ == SHARED_REGIONS) emu::fail(where, "more than %zu shared arrays", SHARED_REGIONS - 1);
    return shared_[shared_used_++].take(tag, bytes, align);
}

void* Worker::dynamic_shared(size_t align, Where where) {
    if (!shared_[0].bytes) emu::fail(where, "the launch gives no dynamic shared memory");
    if (align > DYNAMIC_ALIGN)
        emu::fail(where, "dynamic shared memory is aligned to %zu bytes", DYNAMIC_ALIGN);
    return shared_[0].begin();
}

const SharedRegion* Worker::shared_near(const void* address) const {
    const size_t offset = static_cast<const char*>(address) - arena_;
    return offset < SHARED_REGIONS * SHARED_STRIDE ? &shared_[offset / SHARED_STRIDE] : nullptr;
}

void Worker::check_shared(const void* address, size_t bytes, const char* what, Where where) {
    const char* begin = static_cast<const char*>(address);
    const SharedRegion* region = shared_near(address);
    if (!region || begin < region->begin() || begin + bytes > region->begin() + region->bytes)
        emu::fail(where, "%s: %p is not in a shared array", what, address);
    if (reinterpret_cast<uintptr_t>(address) % bytes)
        emu::fail(where, "%s: %p is not aligned", what, address);
}

void Worker::check_overruns() {
    for (size_t i = 0; i < shared_used_; i++) {
        if (!shared_[i].bytes || !shared_[i].overrun()) continue;
        char text[100];
        snprintf(text, sizeof text, "something wrote before or past a shared array of %zu bytes",
                 shared_[i].bytes);
        report({}, text);
    }
}

void* shared_array(const void* tag, size_t bytes, size_t align, Where where) {
    return Worker::mine().shared_array(tag, bytes, align, where);
}

void* dynamic_shared(size_t align, Where where) { return Worker::mine().dynamic_shared(align, where); }

}  // namespace emu
