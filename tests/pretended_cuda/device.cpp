// What torch asks of a CUDA device when nothing is computed on it: eight devices, one stream each, events that
// have always happened. With this a torch that was built without CUDA takes fake tensors "on" a GPU forward and
// backward. Loaded before torch, which looks once.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

using c10::Device, c10::DeviceIndex, c10::DeviceType, c10::Stream;
constexpr DeviceIndex DEVICES = 8;

struct Guard final : c10::impl::DeviceGuardImplInterface {
    static thread_local DeviceIndex current;
    DeviceType type() const override { return DeviceType::CUDA; }
    Device exchangeDevice(Device device) const override {
        Device before = getDevice();
        current = device.index();
        return before;
    }
    Device getDevice() const override { return Device(type(), current); }
    void setDevice(Device device) const override { current = device.index(); }
    void uncheckedSetDevice(Device device) const noexcept override { current = device.index(); }
    Stream getStream(Device device) const noexcept override { return Stream(Stream::DEFAULT, device); }
    Stream getNewStream(Device device, int) const override { return getStream(device); }
    Stream getDefaultStream(Device device) const override { return getStream(device); }
    Stream exchangeStream(Stream stream) const noexcept override { return stream; }
    DeviceIndex deviceCount() const noexcept override { return DEVICES; }
    void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
    void block(void*, const Stream&) const override {}
    bool queryEvent(void*) const override { return true; }
    void destroyEvent(void*, const DeviceIndex) const noexcept override {}
    bool queryStream(const Stream&) const override { return true; }
    void synchronizeStream(const Stream&) const override {}
};
thread_local DeviceIndex Guard::current = 0;
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

namespace at {
struct PretendedHooks : CUDAHooksInterface {
    explicit PretendedHooks(CUDAHooksArgs) {}
    void init() const override {}
    bool hasCUDA() const override { return true; }
    bool isAvailable() const override { return true; }
    bool isBuilt() const override { return true; }
    bool hasPrimaryContext(DeviceIndex) const override { return true; }
    DeviceIndex deviceCount() const override { return DEVICES; }
    DeviceIndex getCurrentDevice() const override { return 0; }
    DeviceIndex current_device() const override { return 0; }
};
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", PretendedHooks)
}  // namespace at
