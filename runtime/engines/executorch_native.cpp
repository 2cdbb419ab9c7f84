// Plain C interface over ExecuTorch's Module, for callers without torch. Loaded by
// executorch_native.py.
//
// Conventions: functions that can fail return nullptr or a negative number, and
// seedtune_error() then tells why in one line (per thread). A handle serves one call at a time.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include <sys/mman.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor_ptr.h>
#include <executorch/extension/tensor/tensor_ptr_maker.h>
#include <executorch/runtime/backend/backend_options_map.h>
#include <executorch/runtime/backend/options.h>
#include <executorch/runtime/platform/platform.h>

// The wheel ships these functions of libexecutorch_threadpool.so without their header.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t num_threads);
};
ThreadPool* get_threadpool();
} // namespace executorch::extension::threadpool

namespace {

namespace runtime = executorch::runtime;
using executorch::aten::ScalarType;
using executorch::extension::Module;

enum Type : int32_t { kInt64 = 0, kFloat32 = 1, kOther = 2 };

// Planned memory of one method. Mapped rather than allocated, so that a request below the bounds
// touches, and costs, only the front part of each tensor's place.
class Arenas {
 public:
  Arenas() = default;
  Arenas(const Arenas&) = delete;
  ~Arenas() {
    for (const auto& span : spans_) {
      munmap(span.data(), span.size());
    }
  }

  void add(size_t bytes) {
    bytes = std::max<size_t>(bytes, 1);
    void* data =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
      throw std::runtime_error(
          "no " + std::to_string(bytes) + " bytes of memory for activations; lower the bounds");
    }
    spans_.emplace_back(static_cast<uint8_t*>(data), bytes);
  }

  runtime::HierarchicalAllocator* allocator() {
    allocator_ = std::make_unique<runtime::HierarchicalAllocator>(
        runtime::Span<runtime::Span<uint8_t>>(spans_.data(), spans_.size()));
    return allocator_.get();
  }

 private:
  std::vector<runtime::Span<uint8_t>> spans_;
  std::unique_ptr<runtime::HierarchicalAllocator> allocator_;
};

// XNNPACK packs a method's weights into memory of its own. With its cache, methods that share
// weights in the file share the packed ones, too. It knows a weight by its name alone, one cache
// for all programs of the process: an export of several methods names weights by codes and scales.
class PackedOnce {
 public:
  PackedOnce() {
    option_.set_option("weight_cache_enabled", true);
    map_.set_options("XnnpackBackend", option_.view());
  }
  PackedOnce(const PackedOnce&) = delete;
  const runtime::LoadBackendOptionsMap* options() const {
    return &map_;
  }

 private:
  runtime::BackendOptions<1> option_;
  runtime::LoadBackendOptionsMap map_;
};

struct Program {
  std::map<std::string, Arenas> arenas; // outlive the module, whose methods point into them
  PackedOnce packed_once;
  std::unique_ptr<Module> module;
};

thread_local std::string last_error;
// First error that the runtime logs during a call of ours: it names the cause, an error code
// only the kind.
thread_local std::string* first_log = nullptr;
pal_emit_log_message_method next_log = nullptr; // set once

std::mutex pool_mutex;
int open_programs = 0; // guarded by pool_mutex

void keep_first_error(
    et_timestamp_t timestamp,
    et_pal_log_level_t level,
    const char* file,
    const char* function,
    size_t line,
    const char* message,
    size_t length) {
  if (first_log == nullptr) {
    next_log(timestamp, level, file, function, line, message, length);
  } else if (first_log->empty() && (level == kError || level == kFatal)) {
    first_log->assign(message, length);
    std::replace(first_log->begin(), first_log->end(), '\n', ' ');
  }
}

// Again where another took its place: executorch's Python binding does, when it is loaded, and so
// does a second copy of this library. What follows stays what was found at first: two copies that
// each followed the newest would pass a message to each other for ever.
void register_log() {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = runtime::get_pal_impl()->emit_log_message;
  if (found != keep_first_error) {
    if (next_log == nullptr) {
      next_log = found;
    }
    runtime::register_pal(runtime::PalImpl::create(keep_first_error, __FILE__));
  }
}

// Collects the runtime's log while it lives, so that nothing is printed.
class Call {
 public:
  Call() {
    std::string told; // registering tells of itself as an error
    first_log = &told;
    register_log();
    first_log = &log_;
  }
  ~Call() { first_log = nullptr; }
  void fail(const std::string& what, runtime::Error code) {
    last_error = what + ": ";
    last_error += log_.empty() ? runtime::to_string(code) : log_.c_str();
  }

 private:
  std::string log_;
};

// Copies text with its end mark as far as it fits; returns the bytes that all of it needs.
int64_t copy_text(const std::string& text, char* out, int64_t capacity) {
  if (capacity > 0) {
    const size_t n = std::min<size_t>(text.size(), capacity - 1);
    std::memcpy(out, text.data(), n);
    out[n] = '\0';
  }
  return text.size() + 1;
}

Type type_of(ScalarType type) {
  return type == ScalarType::Long ? kInt64 : type == ScalarType::Float ? kFloat32 : kOther;
}

const char* name_of(ScalarType type) {
  switch (type_of(type)) {
    case kInt64:
      return "int64";
    case kFloat32:
      return "float32";
    default:
      return "other";
  }
}

std::string line_of(const char* kind, const runtime::TensorInfo& info) {
  std::string line = std::string(kind) + " " + name_of(info.scalar_type());
  for (const auto size : info.sizes()) {
    line += " " + std::to_string(size);
  }
  return line + "\n";
}

// ExecuTorch's pool serves the whole process, and a loaded method keeps a pointer into it:
// changing its size under a loaded method corrupts the heap.
bool set_threads(uint32_t threads, bool required, bool fixed) {
  auto* pool = executorch::extension::threadpool::get_threadpool();
  fixed = fixed || open_programs > 0;
  if (pool->get_thread_count() == threads || (fixed && !required)) {
    return true;
  }
  if (fixed) {
    const auto has = std::to_string(pool->get_thread_count());
    last_error = open_programs > 0
        ? "another program is open in this process with " + has +
            " threads; close it before asking for " + std::to_string(threads)
        : "executorch's Python binding is loaded in this process and keeps its " + has +
            " threads; ask for " + has + ", or for " + std::to_string(threads) +
            " in a new process";
    return false;
  }
  if (!pool->_unsafe_reset_threadpool(threads)) {
    last_error = "no pool of " + std::to_string(threads) + " threads could be made";
    return false;
  }
  return true;
}

} // namespace

extern "C" {

struct seedtune_tensor {
  int32_t type; // 0 int64, 1 float32
  int32_t rank;
  const int64_t* shape;
  void* data; // contiguous, row-major; only borrowed for the call
};

const char* seedtune_error() {
  return last_error.c_str();
}

int32_t seedtune_threads() {
  return executorch::extension::threadpool::get_threadpool()->get_thread_count();
}

// Programs that are open in this process.
int32_t seedtune_programs() {
  const std::lock_guard<std::mutex> lock(pool_mutex);
  return open_programs;
}

// threads: size of the process's pool, at least 1; if not required, an open program overrides it.
// fixed: 1 where others may have loaded methods in this process, so that the pool must stay.
// The file is mapped, so that its pages are the kernel's to drop.
void* seedtune_open(const char* path, int32_t threads, int32_t required, int32_t fixed) {
  Call call;
  try {
#ifdef __GLIBC__
    malloc_trim(0); // reading a bundle leaves 25 MB of freed memory that would stay resident
#endif
    const std::lock_guard<std::mutex> lock(pool_mutex);
    if (!set_threads(threads, required, fixed)) {
      return nullptr;
    }
    auto program = std::make_unique<Program>();
    program->module = std::make_unique<Module>(path, Module::LoadMode::Mmap);
    const auto error =
        program->module->load(runtime::Program::Verification::InternalConsistency);
    if (error != runtime::Error::Ok) {
      call.fail("the program cannot be read", error);
      return nullptr;
    }
    ++open_programs;
    return program.release();
  } catch (const std::exception& error) {
    last_error = error.what();
    return nullptr;
  }
}

void seedtune_close(void* handle) {
  if (handle != nullptr) {
    const std::lock_guard<std::mutex> lock(pool_mutex);
    delete static_cast<Program*>(handle);
    --open_programs;
  }
}

// Names of all methods, one a line. Returns the bytes needed, end mark included.
int64_t seedtune_methods(void* handle, char* out, int64_t capacity) {
  Call call;
  const auto names = static_cast<Program*>(handle)->module->method_names();
  if (!names.ok()) {
    call.fail("the methods cannot be listed", names.error());
    return -1;
  }
  std::vector<std::string> sorted(names->begin(), names->end());
  std::sort(sorted.begin(), sorted.end());
  std::string text;
  for (const auto& name : sorted) {
    text += name + "\n";
  }
  return copy_text(text, out, capacity);
}

// One line for each tensor, "input TYPE SIZE...", then "output TYPE SIZE...", sizes at their
// upper bounds, and "planned BYTES" for each arena. Returns the bytes needed.
int64_t seedtune_describe(void* handle, const char* method, char* out, int64_t capacity) {
  Call call;
  const auto meta = static_cast<Program*>(handle)->module->method_meta(method);
  if (!meta.ok()) {
    call.fail(std::string("method ") + method, meta.error());
    return -1;
  }
  std::string text;
  for (size_t i = 0; i < meta->num_inputs(); ++i) {
    const auto info = meta->input_tensor_meta(i);
    text += info.ok() ? line_of("input", *info) : "input other\n";
  }
  for (size_t i = 0; i < meta->num_outputs(); ++i) {
    const auto info = meta->output_tensor_meta(i);
    text += info.ok() ? line_of("output", *info) : "output other\n";
  }
  for (size_t i = 0; i < meta->num_memory_planned_buffers(); ++i) {
    const auto bytes = meta->memory_planned_buffer_size(i);
    text += "planned " + std::to_string(bytes.ok() ? *bytes : 0) + "\n";
  }
  return copy_text(text, out, capacity);
}

// Prepares a method: delegates pack their weights and its arenas are allocated.
int32_t seedtune_load(void* handle, const char* method) {
  Call call;
  try {
    auto* program = static_cast<Program*>(handle);
    if (program->module->is_method_loaded(method)) {
      return 0;
    }
    const auto meta = program->module->method_meta(method);
    if (!meta.ok()) {
      call.fail(std::string("method ") + method, meta.error());
      return -1;
    }
    auto& arenas = program->arenas[method];
    for (size_t i = 0; i < meta->num_memory_planned_buffers(); ++i) {
      const auto bytes = meta->memory_planned_buffer_size(i);
      arenas.add(bytes.ok() ? *bytes : 0);
    }
    const auto methods = program->module->num_methods();
    const bool several = methods.ok() && *methods > 1;
    const auto error = program->module->load_method(
        method,
        arenas.allocator(),
        nullptr,
        several ? program->packed_once.options() : nullptr);
    if (error == runtime::Error::Ok) {
      return 0;
    }
    program->arenas.erase(method);
    call.fail(std::string("method ") + method + " cannot be loaded", error);
  } catch (const std::exception& error) {
    last_error = error.what();
  }
  return -1;
}

// Runs a method, loaded first if it is not, whose outputs are float32 tensors. The first `wanted`
// of them are copied into outputs[i].data.
int32_t seedtune_run(
    void* handle,
    const char* method,
    const seedtune_tensor* inputs,
    int32_t count,
    const seedtune_tensor* outputs,
    int32_t wanted) {
  if (seedtune_load(handle, method) != 0) {
    return -1;
  }
  Call call;
  try {
    std::vector<executorch::extension::TensorPtr> tensors;
    std::vector<runtime::EValue> arguments;
    for (int32_t i = 0; i < count; ++i) {
      const auto& input = inputs[i];
      tensors.push_back(executorch::extension::from_blob(
          input.data,
          std::vector<executorch::aten::SizesType>(input.shape, input.shape + input.rank),
          input.type == kInt64 ? ScalarType::Long : ScalarType::Float));
      arguments.emplace_back(*tensors.back());
    }
    const auto results = static_cast<Program*>(handle)->module->execute(method, arguments);
    if (!results.ok()) {
      call.fail(std::string("method ") + method + " failed", results.error());
      return -1;
    }
    if (results->size() < static_cast<size_t>(wanted)) {
      last_error = std::string("method ") + method + " returns fewer tensors than were asked for";
      return -1;
    }
    for (int32_t i = 0; i < wanted; ++i) {
      const auto& output = outputs[i];
      if (!(*results)[i].isTensor()) {
        last_error = std::string("method ") + method + " returns what is not a tensor";
        return -1;
      }
      const auto& tensor = (*results)[i].toTensor();
      const auto sizes = tensor.sizes();
      if (type_of(tensor.scalar_type()) != kFloat32 ||
          !std::equal(sizes.begin(), sizes.end(), output.shape, output.shape + output.rank)) {
        last_error = std::string("method ") + method + " returned another type or shape";
        return -1;
      }
      // The result lies in planned memory that the next call overwrites.
      std::memcpy(output.data, tensor.const_data_ptr<float>(), tensor.nbytes());
    }
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
    return -1;
  }
}

} // extern "C"
