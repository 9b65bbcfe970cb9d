#define USE_C10D_GLOO
#include "process_group.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <deque>
#include <future>
#include <mutex>
#include <thread>

#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace graft {
namespace {

using Milliseconds = std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

// Between two looks at whether another process raised the alarm.
constexpr Milliseconds kWatchInterval{500};
// For a store to answer.
constexpr Milliseconds kStoreLimit{5000};

// That Gloo waits longer than this process, which notices first and says which process is late.
constexpr Milliseconds kGrace{10000};
// Other programs may use the store too, such as torchrun.
constexpr char kPrefix[] = "graft";

c10::intrusive_ptr<c10d::Store> connect(const std::string& host, uint16_t port, bool server, Milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = port;
  options.isServer = server;
  options.waitWorkers = false;
  options.timeout = timeout;
  return c10::make_intrusive<c10d::PrefixStore>(kPrefix, c10::make_intrusive<c10d::TCPStore>(host, options));
}

// A store whose process is stopped leaves its clients waiting, and names are looked up for as long as the system likes: who acts on a store
// does so in a thread that can be left behind.
template <typename Result>
Result within(Milliseconds limit, const std::string& place, std::function<Result()> act) {
  auto task = std::make_shared<std::packaged_task<Result()>>(std::move(act));
  auto result = task->get_future();
  std::thread([task] { (*task)(); }).detach();
  TORCH_CHECK(result.wait_for(limit) == std::future_status::ready, "the store at ", place, " does not answer");
  return result.get();
}

}  // namespace

class ProcessGroup : public std::enable_shared_from_this<ProcessGroup> {
 public:
  ProcessGroup(std::string host, uint16_t port, bool server, int rank, Milliseconds timeout)
      : host_(std::move(host)), port_(port), rank_(rank), place_(host_ + ":" + std::to_string(port_)) {
    const auto open = [&](bool hosts) {
      return within<c10::intrusive_ptr<c10d::Store>>(
          timeout + kStoreLimit, place_, [=, host = host_, port = port_] { return connect(host, port, hosts, timeout); });
    };
    store_ = open(server);
    // A connection serves one thread at a time.
    watched_ = open(false);
  }

  void set(const std::string& key, const std::string& value) {
    within<void>(kStoreLimit, place_, [store = store_, key, value] {
      store->set(key, std::vector<uint8_t>(value.begin(), value.end()));
    });
  }

  std::string set_once(const std::string& key, const std::string& value) {
    return within<std::string>(kStoreLimit, place_, [store = store_, key, value] {
      const auto stored = store->compareSet(key, {}, std::vector<uint8_t>(value.begin(), value.end()));
      return std::string(stored.begin(), stored.end());
    });
  }

  std::optional<std::string> get(const std::string& key, Milliseconds timeout) {
    return within<std::optional<std::string>>(timeout + kStoreLimit, place_, [store = store_, key, timeout]() -> std::optional<std::string> {
      const auto deadline = Clock::now() + timeout;
      for (Milliseconds pause{1};; pause = std::min(2 * pause, Milliseconds{100})) {
        if (store->check({key})) {
          const auto value = store->get(key);
          return std::string(value.begin(), value.end());
        }
        if (Clock::now() >= deadline) return std::nullopt;
        std::this_thread::sleep_for(pause);
      }
    });
  }

  // Gloo waits five times as long as it is told for a process that ended after it had said where it listens, so another thread connects.
  std::string connect_all(int size, const std::optional<std::string>& address, Milliseconds timeout, const std::string& prefix,
                          const std::string& name) {
    prefix_ = prefix;
    // From now on others can tell whether this process lives, even while it connects.
    start([](ProcessGroup& self) { self.watch(); });
    start([=](ProcessGroup& self) { self.connect_gloo(size, address, timeout + kGrace); });
    std::unique_lock lock(mutex_);
    changed_.wait_until(lock, Clock::now() + timeout, [&] { return gloo_ || failure_ || alarm_; });
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    if (!gloo_) return alarm_ ? "alarm" : "late";
    group_ = c10::make_intrusive<c10d::ProcessGroup>(store_, rank_, size);
    group_->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, gloo_);
    group_->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
    group_->setGroupName(name);
    c10d::register_process_group(name, group_);
    name_ = name;
    lock.unlock();
    start([](ProcessGroup& self) { self.wait_for_collectives(); });
    return "done";
  }

  // LibTorch's own wait has no limit shorter than the group's, so another thread waits, and this one looks at the clock and at the alarm.
  std::string wait(const at::Tensor& tensor, Milliseconds timeout) {
    std::unique_lock lock(mutex_);
    const uint64_t ticket = ++issued_;
    pending_.push_back(tensor);
    changed_.notify_all();
    const auto deadline = Clock::now() + timeout;
    changed_.wait_until(lock, deadline, [&] { return ended_ >= ticket || alarm_; });
    if (ended_ < ticket) return alarm_ ? "alarm" : "late";
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    return "done";
  }

  // Where collectives have not ended, the threads are left behind: they wait for other processes.
  void close(bool all_ended) {
    if (group_) c10d::unregister_process_group(name_);
    std::unique_lock lock(mutex_);
    closing_ = true;
    changed_.notify_all();
    if (!all_ended) return;
    changed_.wait(lock, [this] { return threads_ == 0; });
    group_.reset();
    gloo_.reset();
  }

 private:
  // The threads own this object too: one that waits for another process cannot be stopped, and may outlive the Node environment.
  void start(std::function<void(ProcessGroup&)> run) {
    {
      const std::lock_guard lock(mutex_);
      threads_++;
    }
    std::thread([self = shared_from_this(), run = std::move(run)] {
      run(*self);
      const std::lock_guard lock(self->mutex_);
      self->threads_--;
      self->changed_.notify_all();
    }).detach();
  }

  void connect_gloo(int size, const std::optional<std::string>& address, Milliseconds limit) {
    c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
    std::exception_ptr failure;
    try {
      auto options = address ? c10d::ProcessGroupGloo::Options::create(limit) : c10d::ProcessGroupGloo::Options::create_default(limit);
      if (address) options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(*address));
      options->timeout = limit;
      // It asks for what others have not said yet, and leaves a connection to no other thread meanwhile.
      const auto rendezvous = c10::make_intrusive<c10d::PrefixStore>(prefix_ + "/gloo", connect(host_, port_, false, limit));
      gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(rendezvous, rank_, size, options);
    } catch (...) {
      failure = std::current_exception();
    }
    const std::lock_guard lock(mutex_);
    gloo_ = std::move(gloo);
    failure_ = failure;
    changed_.notify_all();
  }

  void wait_for_collectives() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return closing_ || !pending_.empty(); });
      if (pending_.empty()) return;
      at::Tensor tensor = std::move(pending_.front());
      pending_.pop_front();
      lock.unlock();
      std::exception_ptr failure;
      try {
        c10d::wait_tensor(tensor);
      } catch (...) {
        failure = std::current_exception();
      }
      tensor = at::Tensor();
      lock.lock();
      ended_++;
      if (failure) failure_ = failure;
      changed_.notify_all();
    }
  }

  // Looks for the alarm that a process raises which lost another one, and answers it, so that those that do not answer can be named. The
  // answer says how many collectives this process has begun to wait for: the process that all others wait for has begun fewer.
  void watch() {
    try {
      const auto store = c10::make_intrusive<c10d::PrefixStore>(prefix_, watched_);
      std::unique_lock lock(mutex_);
      while (!changed_.wait_for(lock, kWatchInterval, [this] { return closing_; })) {
        const std::string answer = std::to_string(issued_);
        lock.unlock();
        const bool raised = store->check({"alarm"});
        if (raised) store->set("present/" + std::to_string(rank_), std::vector<uint8_t>(answer.begin(), answer.end()));
        lock.lock();
        if (raised && !alarm_) {
          alarm_ = true;
          changed_.notify_all();
        }
      }
    } catch (const std::exception&) {
      // The process that hosts the store has ended, or this machine is cut off from it: the collectives fail for the same reason.
      const std::lock_guard lock(mutex_);
      if (!closing_) alarm_ = true;
      changed_.notify_all();
    }
  }

  const std::string host_;
  const uint16_t port_;
  const int rank_;
  const std::string place_;
  c10::intrusive_ptr<c10d::Store> store_, watched_;
  // Of the keys of this group: a store may have those of earlier attempts too.
  std::string prefix_;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo_;
  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  std::string name_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<at::Tensor> pending_;
  uint64_t issued_ = 0, ended_ = 0;
  std::exception_ptr failure_;
  bool alarm_ = false, closing_ = false;
  int threads_ = 0;
};

namespace {

ProcessGroup& group_at(const Napi::CallbackInfo& info) {
  const auto& groups = instance(info.Env()).groups;
  const uint32_t index = info[0].As<Napi::Number>();
  TORCH_CHECK(index < groups.size() && groups[index], "this process group was closed");
  return *groups[index];
}

std::string text_at(const Napi::CallbackInfo& info, size_t i) { return info[i].As<Napi::String>(); }

Milliseconds milliseconds_at(const Napi::CallbackInfo& info, size_t i) {
  return Milliseconds(info[i].As<Napi::Number>().Int64Value());
}

}  // namespace

Napi::Value store_open(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "store open", no_shapes, [&]() -> Napi::Value {
    // c10d prints a stack trace wherever a connection ends; who waits for it says so in a sentence.
    setenv("TORCH_CPP_LOG_LEVEL", "FATAL", 0);
    c10::initLogging();
    auto& groups = instance(env).groups;
    groups.push_back(std::make_shared<ProcessGroup>(text_at(info, 0), static_cast<uint16_t>(info[1].As<Napi::Number>().Uint32Value()),
                                                    info[2].As<Napi::Boolean>().Value(), info[3].As<Napi::Number>().Int32Value(),
                                                    milliseconds_at(info, 4)));
    return Napi::Number::New(env, static_cast<double>(groups.size() - 1));
  });
}

Napi::Value store_set(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "store set", no_shapes, [&]() -> Napi::Value {
    group_at(info).set(text_at(info, 1), text_at(info, 2));
    return info.Env().Undefined();
  });
}

Napi::Value store_set_once(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "store set once", no_shapes, [&]() -> Napi::Value {
    return Napi::String::New(info.Env(), group_at(info).set_once(text_at(info, 1), text_at(info, 2)));
  });
}

Napi::Value store_get(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "store get", no_shapes, [&]() -> Napi::Value {
    const auto value = group_at(info).get(text_at(info, 1), milliseconds_at(info, 2));
    if (!value) return env.Null();
    return Napi::String::New(env, *value);
  });
}

Napi::Value address_towards(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "address", no_shapes, [&]() -> Napi::Value {
    const std::string host = text_at(info, 0);
    const std::string port = std::to_string(info[1].As<Napi::Number>().Uint32Value());
    addrinfo hints{};
    hints.ai_socktype = SOCK_DGRAM;
    addrinfo* found = nullptr;
    const int code = getaddrinfo(host.c_str(), port.c_str(), &hints, &found);
    TORCH_CHECK(code == 0, "the host ", host, " is not known: ", gai_strerror(code));
    const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, freeaddrinfo);
    // A name may have addresses of a kind that this machine has no network for.
    for (const addrinfo* candidate = found; candidate; candidate = candidate->ai_next) {
      // To connect a socket for datagrams sends nothing: it only chooses the interface.
      const int socket_fd = socket(candidate->ai_family, SOCK_DGRAM, 0);
      sockaddr_storage own{};
      socklen_t length = sizeof own;
      char text[NI_MAXHOST] = "";
      const bool ok = socket_fd >= 0 && ::connect(socket_fd, candidate->ai_addr, candidate->ai_addrlen) == 0 &&
                      getsockname(socket_fd, reinterpret_cast<sockaddr*>(&own), &length) == 0 &&
                      getnameinfo(reinterpret_cast<sockaddr*>(&own), length, text, sizeof text, nullptr, 0, NI_NUMERICHOST) == 0;
      if (socket_fd >= 0) ::close(socket_fd);
      if (ok) return Napi::String::New(env, text);
    }
    TORCH_CHECK(false, "this machine has no network route to ", host);
  });
}

Napi::Value group_connect(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "group connect", no_shapes, [&]() -> Napi::Value {
    const auto address = info[2].IsString() ? std::make_optional(text_at(info, 2)) : std::nullopt;
    const auto size = info[1].As<Napi::Number>().Int32Value();
    return Napi::String::New(env, group_at(info).connect_all(size, address, milliseconds_at(info, 3), text_at(info, 4), text_at(info, 5)));
  });
}

Napi::Value group_wait(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "collective", no_shapes, [&]() -> Napi::Value {
    const at::Tensor& tensor = instance(env).tensors.get(info[1].As<Napi::Number>().Uint32Value());
    return Napi::String::New(env, group_at(info).wait(tensor, milliseconds_at(info, 2)));
  });
}

Napi::Value group_close(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "group close", no_shapes, [&]() -> Napi::Value {
    group_at(info);
    const auto group = std::move(instance(env).groups[info[0].As<Napi::Number>().Uint32Value()]);
    group->close(info[1].As<Napi::Boolean>());
    return env.Undefined();
  });
}

}  // namespace graft
