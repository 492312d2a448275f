// Included before a kernel's source: for a host compiler, what nvcc and NVRTC have built in.
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
