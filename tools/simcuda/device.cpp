// A CUDA device that is the host: tensors hold host memory under the dispatch key CUDA, and one boxed kernel stands for all kernels of CUDA.
// It refuses what CUDA refuses, runs the CPU's kernel on the same memory, and during a capture writes the call down.
#include <torch/extension.h>
#include <torch/library.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/FakeGuardImpl.h>
#include <mutex>

using at::Tensor;
using c10::Device, c10::DispatchKey, c10::IValue, c10::Storage, c10::StorageImpl;
using torch::jit::Stack;
constexpr auto kGPU = c10::DeviceType::CUDA;
constexpr int DEVICES = 2;

static Device current() { return c10::impl::getDeviceGuardImpl(kGPU)->getDevice(); }

// ---- Memory: a device storage points at the bytes of a host storage, which its block keeps.

struct Block { Storage host; uint64_t id; };
static std::map<uint64_t, Block*> living;  // by number, so that a new block is never taken for an old one
static uint64_t numbered = 0;
static std::mutex lock;

static void release(void* block) {
  std::lock_guard<std::mutex> held(lock);
  living.erase(static_cast<Block*>(block)->id);
  delete static_cast<Block*>(block);
}
static c10::DataPtr on_device(const Storage& host, Device device) {
  std::lock_guard<std::mutex> held(lock);
  auto* block = new Block{host, ++numbered};
  living[block->id] = block;
  return {const_cast<void*>(host.data()), block, &release, device};
}
static Block* block_of(const Storage& s) { return static_cast<Block*>(s.data_ptr().get_context()); }

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    auto* host = c10::GetAllocator(c10::kCPU);
    Storage s(Storage::use_byte_size_t(), n, host->allocate(n), host, true);
    if (n) memset(s.mutable_data(), 0xFF, n);  // NaN or -1: nothing may rely on fresh memory
    return on_device(s, current());
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }
};
static DeviceAllocator allocator;

// ---- What torch asks of a build with CUDA

static at::Generator random_of[DEVICES] = {at::make_generator<at::CPUGeneratorImpl>(1), at::make_generator<at::CPUGeneratorImpl>(1)};
struct Hooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return DEVICES; }
  int getNumGPUs() const override { return DEVICES; }
  c10::DeviceIndex current_device() const override { return current().index(); }
  c10::DeviceIndex getCurrentDevice() const override { return current().index(); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex i) const override { return random_of[i < 0 ? current().index() : i]; }
};
static const bool registered = [] {
  static c10::impl::FakeGuardImpl<kGPU> guard;
  c10::impl::registerDeviceGuard(kGPU, &guard);
  static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface));  // torch has made its empty hooks by now: these take their place
  new (const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks())) Hooks();
  c10::SetAllocator(kGPU, &allocator, 1);
  return true;
}();

// ---- Captures

struct Call { c10::OperatorHandle op; Stack in; std::vector<Tensor> out; Device device; bool random; };
struct Graph {
  Device device;  // work on another device is not captured
  std::vector<Call> calls;
  std::map<uint64_t, std::string> before;  // the bytes of all blocks when the capture began
  std::map<uint64_t, bool> read;  // blocks from outside
  Tensor random;  // the state of the device's generator when the capture began
  std::string broken;
};
static std::shared_ptr<Graph> recording;

static void begin() {
  TORCH_CHECK(!recording, "a capture is already underway");
  recording = std::make_shared<Graph>(Graph{current()});
  recording->random = random_of[current().index()].get_state();
  std::lock_guard<std::mutex> held(lock);
  for (auto& [id, b] : living) recording->before[id] = std::string(static_cast<const char*>(b->host.data()), b->host.nbytes());
}
static std::shared_ptr<Graph> end() {  // what was captured has not run: all memory is as it was, and new memory holds nothing
  auto graph = std::move(recording);
  recording.reset();
  {
    std::lock_guard<std::mutex> held(lock);
    for (auto& [id, b] : living) {
      auto old = graph->before.find(id);
      if (old == graph->before.end()) memset(b->host.mutable_data(), 0xFF, b->host.nbytes());
      else if (old->second.size()) memcpy(b->host.mutable_data(), old->second.data(), old->second.size());
    }
  }
  graph->before.clear();
  random_of[graph->device.index()].set_state(graph->random);
  TORCH_CHECK(graph->broken.empty(), "CUDA error: operation failed due to a previous error during capture (", graph->broken, ")");
  return graph;
}

// ---- Waits

static py::object* told = nullptr;
static int64_t launched = 0;
static void waits(const std::string& what, Graph* graph) {
  if (told) { py::gil_scoped_acquire gil; (*told)(what); }
  if (!graph) return;
  graph->broken = what;
  TORCH_CHECK(false, "CUDA error: operation not permitted when stream is capturing (", what, ")");
}

// ---- One call

static void run_on_host(const c10::OperatorHandle& op, Stack* stack, Device device, bool random) {
  at::AutoDispatchBelowADInplaceOrView plain;
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  if (!random) return op.callBoxed(stack);
  auto host = at::detail::getDefaultCPUGenerator();
  auto& own = random_of[device.index()];
  const auto kept = host.get_state();
  host.set_state(own.get_state());
  try { op.callBoxed(stack); } catch (...) { host.set_state(kept); throw; }
  own.set_state(host.get_state());
  host.set_state(kept);
}
static Tensor with_storage(Storage s, DispatchKey key, const Tensor& like) {
  auto t = at::detail::make_tensor<c10::TensorImpl>(std::move(s), c10::DispatchKeySet(key), like.dtype());
  t.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return t;
}
template <class F> static IValue each(const IValue& v, F f) {  // the value with f of every tensor in it
  if (v.isTensor()) return v.toTensor().defined() ? IValue(f(v.toTensor())) : v;
  if (v.isTensorList()) { c10::List<Tensor> l; for (const Tensor& t : v.toTensorVector()) l.push_back(f(t)); return l; }
  if (v.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> l;
    for (const auto& t : v.toOptionalTensorVector()) l.push_back(t && t->defined() ? std::optional<Tensor>(f(*t)) : std::nullopt);
    return l;
  }
  return v;
}
static std::string plain_name(const c10::OperatorHandle& op) { return op.schema().name().substr(6); }  // without aten::
static const std::unordered_set<std::string> SCALARS = {"fill_", "masked_fill", "masked_fill_", "floor_divide", "floor_divide_"};  // not tagged as pointwise
static bool takes_scalars(const c10::OperatorHandle& op, const std::string& name) {  // of the CPU, beside tensors of the GPU
  if (op.hasTag(at::Tag::pointwise) || SCALARS.count(name)) return true;
  if (name.back() != '_') return false;
  auto other = c10::Dispatcher::singleton().findSchema({"aten::" + name.substr(0, name.size() - 1), op.schema().overload_name()});
  return other && other->hasTag(at::Tag::pointwise);
}
static const std::unordered_set<std::string> WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive",
    "unique_dim_consecutive", "equal", "bincount", "histc", "multinomial", "_linalg_check_errors"};

struct Arguments {
  std::vector<Tensor> gpu, cpu;
  Device device = current();
  Arguments(const Stack& stack, size_t first) {
    for (size_t i = first; i < stack.size(); i++) {
      each(stack[i], [&](const Tensor& t) { (t.is_cuda() ? gpu : cpu).push_back(t); return t; });
      if (stack[i].isDevice() && stack[i].toDevice().is_cuda() && stack[i].toDevice().has_index()) device = stack[i].toDevice();
    }
    if (!gpu.empty()) device = gpu[0].device();
  }
};
static void check(const c10::OperatorHandle& op, const std::string& name, const Stack& stack, size_t first, const Arguments& a, Graph* graph) {
  const std::string apart = "Expected all tensors to be on the same device, but found at least two devices, ";
  for (size_t i = first; i < stack.size(); i++)
    TORCH_CHECK(!stack[i].isGenerator() || stack[i].toGenerator().device().is_cuda(), "Expected a 'cuda' device type for generator but found 'cpu'");
  if (name == "copy_") {
    const bool from_host = !stack[first + 1].toTensor().is_cuda();
    if (!a.cpu.empty() && !a.gpu.empty() && stack[first + 1].toTensor().numel()) waits(from_host ? "host to device" : "device to host", graph);
    return;
  }
  for (auto& t : a.gpu) TORCH_CHECK(t.device() == a.device, apart, a.device, " and ", t.device(), " (", name, ")");
  if (name == "index" || name == "_index_put_impl_") {
    const auto self = stack[first].toTensor();
    each(stack[first + 1], [&](const Tensor& t) {
      TORCH_CHECK_INDEX(self.is_cuda() || !t.is_cuda(), "indices should be either on cpu or on the same device as the indexed tensor (cpu)");
      if (t.scalar_type() == at::kBool || t.scalar_type() == at::kByte) waits("boolean mask", graph);
      else if (!t.is_cuda()) waits("indices from the host", graph);
      return t;
    });
    if (name == "index") return;
    const auto value = stack[first + 2].toTensor();
    TORCH_CHECK(value.is_cuda() == self.is_cuda() || (self.is_cuda() && value.dim() == 0), apart, self.device(), " and ", value.device(), " (", name, ")");
    return;
  }
  const bool scalars = takes_scalars(op, name);
  for (size_t i = 0; i < op.schema().arguments().size(); i++) {
    const auto* alias = op.schema().arguments()[i].alias_info();
    each(stack[first + i], [&](const Tensor& t) {
      TORCH_CHECK(t.is_cuda() || (scalars && t.dim() == 0 && !(alias && alias->isWrite())), apart, "cuda and cpu (", name, ")");
      return t;
    });
  }
  if (WAITING.count(name) || (name == "repeat_interleave" && stack[first + 1].isNone())) waits(name, graph);
}
static void kernel(const c10::OperatorHandle& op, Stack* stack) {
  const auto& schema = op.schema();
  const auto name = plain_name(op);
  const size_t first = stack->size() - schema.arguments().size();
  const Arguments a(*stack, first);
  Graph* graph = recording && recording->device == a.device ? recording.get() : nullptr;
  check(op, name, *stack, first, a, graph);
  bool view = false, random = op.hasTag(at::Tag::nondeterministic_seeded);
  for (const auto& argument : schema.arguments()) view |= argument.alias_info() && !argument.alias_info()->isWrite();
  launched += !view;

  std::unordered_map<StorageImpl*, Storage> device_of;  // host storage -> device storage
  std::vector<std::pair<Tensor, Tensor>> pairs;  // on the device, and the same on the host
  for (size_t i = first; i < stack->size(); i++) {
    auto& v = (*stack)[i];
    if (v.isDevice()) v = IValue(Device(c10::kCPU));
    v = each(v, [&](const Tensor& t) {
      if (!t.is_cuda()) return graph && !t.unsafeGetTensorImpl()->is_wrapped_number() ? t.clone() : t;
      auto* block = block_of(t.storage());
      device_of.emplace(block->host.unsafeGetStorageImpl(), t.storage());
      if (graph && graph->before.count(block->id)) graph->read[block->id] = true;
      pairs.emplace_back(t, with_storage(block->host, DispatchKey::CPU, t));
      return pairs.back().second;
    });
  }
  Stack in(stack->begin() + first, stack->end());
  run_on_host(op, stack, a.device, random);
  if (graph && !view) {
    Call call{op, in, {}, a.device, random};
    for (size_t i = first; i < stack->size(); i++) each((*stack)[i], [&](const Tensor& t) { call.out.push_back(t); return t; });
    graph->calls.push_back(std::move(call));
  }
  for (auto& [t, host] : pairs) {  // resized or restrided in place
    auto* impl = t.unsafeGetTensorImpl();
    if (host.storage().data() != t.storage().data() || host.storage().nbytes() != t.storage().nbytes()) {
      t.storage().set_data_ptr_noswap(on_device(host.storage(), t.device()));
      t.storage().set_nbytes(host.storage().nbytes());
    }
    if (host.sizes() != t.sizes() || host.strides() != t.strides()) impl->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
  }
  for (size_t i = first; i < stack->size(); i++)
    (*stack)[i] = each((*stack)[i], [&](const Tensor& t) {
      for (auto& [ours, host] : pairs) if (host.is_same(t)) return ours;
      for (auto& ours : a.cpu) if (ours.is_same(t)) return ours;
      auto known = device_of.find(t.storage().unsafeGetStorageImpl());
      if (known == device_of.end())
        known = device_of.emplace(t.storage().unsafeGetStorageImpl(), Storage(Storage::use_byte_size_t(), t.storage().nbytes(), on_device(t.storage(), a.device), &allocator, true)).first;
      return with_storage(known->second, DispatchKey::CUDA, t);
    });
}
static void replay(Graph& graph) {
  for (auto& [id, _] : graph.read) TORCH_CHECK(living.count(id), "a replayed graph reads memory that nobody owns any more");
  for (auto& call : graph.calls) {
    Stack stack(call.in);
    run_on_host(call.op, &stack, call.device, call.random);
    size_t i = 0;
    for (auto& v : stack) each(v, [&](const Tensor& t) {
      auto& out = call.out[i++];
      if (t.numel() && t.data_ptr() != out.data_ptr()) out.copy_(t);
      return t;
    });
  }
  launched++;
}

// ---- Kernels that are not the CPU's

static Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator, c10::DispatchKeySet(DispatchKey::CUDA), c10::dtype_or_default(dtype), format);
}
static Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>) {
  c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &allocator, c10::DispatchKeySet(DispatchKey::CUDA), c10::dtype_or_default(dtype));
}
static Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, double p, bool causal, std::optional<double> scale, bool grouped) {
  auto bias = mask;
  if (mask && mask->scalar_type() == at::kBool) bias = at::zeros_like(*mask, q.options()).masked_fill_(mask->logical_not(), -INFINITY);
  return std::get<0>(at::_scaled_dot_product_attention_math(q, k, v, bias, p, causal, std::nullopt, scale, grouped));
}
static Tensor& set_part(Tensor& t, Storage s, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  auto* impl = t.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(s));
  impl->set_storage_offset(offset.guard_int(__FILE__, __LINE__));
  if (stride.size() == size.size()) impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
  else impl->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  return t;
}
static Tensor& set_whole(Tensor& t, Storage s) {
  const c10::SymInt n(static_cast<int64_t>(s.nbytes() / t.element_size())), one(1);
  return set_part(t, std::move(s), 0, c10::SymIntArrayRef(&n, 1), c10::SymIntArrayRef(&one, 1));
}
TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&kernel>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  for (auto* op : {"copy_", "convolution", "convolution_backward"}) m.impl(op, torch::CppFunction::makeFromBoxedFunction<&kernel>());
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("scaled_dot_product_attention", &attention);
  m.impl("set_.source_Storage", &set_whole);
  m.impl("set_.source_Storage_storage_offset", &set_part);
}
TORCH_LIBRARY_IMPL(aten, AutogradCUDA, m) { m.impl("scaled_dot_product_attention", &attention); }

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  py::class_<Graph, std::shared_ptr<Graph>>(m, "Graph")
      .def("replay", [](Graph& g) { py::gil_scoped_release free; replay(g); })
      .def("__len__", [](Graph& g) { return g.calls.size(); });
  m.def("begin", &begin);
  m.def("end", &end);
  m.def("capturing", [] { return bool(recording); });
  m.def("device", [] { return int(current().index()); });
  m.def("set_device", [](int i) { c10::impl::getDeviceGuardImpl(kGPU)->setDevice(Device(kGPU, i)); });
  m.def("tell", [](py::object f) { told = new py::object(f); });  // called with what the host waits for
  m.def("launched", [] { return launched; });
  m.def("random_state", [](int i) { return random_of[i].get_state(); });
  m.def("set_random_state", [](int i, Tensor t) { random_of[i].set_state(t); });
  m.def("seed", [](int i, uint64_t s) { random_of[i].set_current_seed(s); });
}
