// The launch of a kernel: its blocks are spread over threads of the host.
#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <numeric>
#include <random>
#include <thread>

#include "worker.h"

namespace emu {
namespace {

std::vector<uint32_t> order_of(uint64_t count, int order) {
    std::vector<uint32_t> sequence;
    if (order == 0) return sequence;
    sequence.resize(count);
    std::iota(sequence.begin(), sequence.end(), 0);
    if (order == 1) std::reverse(sequence.begin(), sequence.end());
    else std::shuffle(sequence.begin(), sequence.end(), std::mt19937(order));
    return sequence;
}

// Threads that help with one launch at a time; another launch at the same time runs alone.
class Helpers {
  public:
    void run(Launch& launch, int count) {
        std::unique_lock<std::mutex> only(user_, std::try_to_lock);
        if (count == 0 || !only.owns_lock()) return Worker::mine().run(launch);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            for (; started_ < count; started_++) std::thread([this] { help(); }).detach();
            launch_ = &launch, wanted_ = count;
        }
        work_.notify_all();
        Worker::mine().run(launch);
        std::unique_lock<std::mutex> lock(mutex_);
        wanted_ = 0;  // who has not come yet need not
        done_.wait(lock, [this] { return busy_ == 0; });
    }

  private:
    void help() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            work_.wait(lock, [this] { return wanted_ > 0; });
            wanted_--, busy_++;
            Launch& launch = *launch_;
            lock.unlock();
            Worker::mine().run(launch);
            lock.lock();
            if (--busy_ == 0) done_.notify_all();
        }
    }

    std::mutex user_, mutex_;
    std::condition_variable work_, done_;
    Launch* launch_ = nullptr;
    int started_ = 0, wanted_ = 0, busy_ = 0;
};

}  // namespace

// 0: done. 1: `failure` says why not.
extern "C" int emu_launch(Entry entry, void** arguments, const Parameters* parameters, Failure* failure) {
    static Helpers* helpers = new Helpers;  // never destroyed: its threads are never joined
    const unsigned *grid = parameters->grid, *size = parameters->block;
    Launch launch;
    launch.entry = entry, launch.arguments = arguments;
    launch.parameters = *parameters, launch.failure = failure;
    launch.threads = size[0] * size[1] * size[2];
    launch.blocks = uint64_t(grid[0]) * grid[1] * grid[2];
    launch.thread_order = order_of(launch.threads, parameters->order);
    launch.block_order = order_of(launch.blocks, parameters->order);
    const uint64_t workers = std::min<uint64_t>(parameters->workers, launch.blocks);
    helpers->run(launch, int(workers) - 1);
    return launch.failed;
}

}  // namespace emu
