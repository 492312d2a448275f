// What the builder includes before a kernel's source: the CUDA that nvcc and NVRTC have built in, for a host compiler.
#pragma once
#include "types.h"
#include "thread.h"
#include "launch.h"
#include "warp.h"
#include "atomics.h"
#include "integers.h"
#include "floats.h"
#include "half.h"
#include "tensor.h"
#include "qualifiers.h"
