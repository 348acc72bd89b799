#include "tests/simulation/simulation.h"

#include <list>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/simulation/checker.h"
#include "tests/simulation/coordinator_host.h"
#include "tests/simulation/worker.h"

namespace ringmaster {
namespace {

// Within this after the last fault the run must have ended: a few of the longest times that
// anything may take, which is a generation's warm-up.
constexpr absl::Duration kPatienceForTheEnd = absl::Seconds(200);
constexpr absl::Duration kWatchInterval = absl::Milliseconds(250);

// A host with an agent, which starts its processes again when they die.
struct Node {
  std::string id;
  HostNetwork network;
  bool agent = true;             // it lives
  std::vector<Worker*> workers;  // by local rank
};

class World {
 public:
  World(uint64_t seed, Mutation mutation, size_t trace_lines);

  SimulationResult Run();

 private:
  void StartNode();
  void StartWorker(Node* node, uint32_t local_rank, Holding holding);
  void Died(Worker* worker, absl::Duration back_after);
  void Ended(Worker* worker, bool run_over);
  void Exited(int exit_code);
  void Watch();
  void StartMissingNodes();

  void Plan();
  void Fault();
  void FaultOfWorker(Worker* worker);
  void FaultOfNode(Node* node);
  void FaultOfCoordinator();
  void FaultOfAll();
  void Cut(Node* node, bool from_coordinator, bool from_peers);
  void Uncut(Node* node);
  void Heal();
  std::vector<Worker*> Living();
  std::vector<Node*> LivingNodes();

  EventQueue queue_;
  Random random_;
  Trace trace_;
  const Scenario scenario_;
  Checker checker_;
  Exchange exchange_;
  CoordinatorHost coordinator_;
  std::list<Node> nodes_;
  std::vector<std::unique_ptr<Worker>> workers_;
  int last_node_ = 0;
  uint32_t faults_left_;
  uint32_t faults_ = 0;
  uint32_t failures_told_ = 0;  // by workers, which count without a generation that breaks
  bool healed_ = false;
  bool restarting_ = false;
  bool over_ = false;
  absl::Time deadline_ = absl::InfiniteFuture();
};

World::World(uint64_t seed, Mutation mutation, size_t trace_lines)
    : random_(seed),
      trace_(&queue_, trace_lines),
      scenario_(MakeScenario(&random_)),
      checker_(&trace_),
      exchange_(&queue_, &random_, &trace_),
      coordinator_(&queue_, &random_, &trace_, &checker_, scenario_, mutation),
      faults_left_(scenario_.faults) {
  coordinator_.OnExit([this](int exit_code) { Exited(exit_code); });
}

SimulationResult World::Run() {
  coordinator_.Start();
  for (uint32_t i = 0; i < scenario_.nodes; ++i) {
    queue_.After(random_.Milliseconds(0, 300), [this] { StartNode(); });
  }
  Watch();
  Plan();
  while (!over_ && !trace_.violated() && queue_.RunNext()) {
    if (queue_.now() > deadline_) {
      trace_.Violate("the run has not ended ", absl::FormatDuration(kPatienceForTheEnd),
                     " after the last fault");
    }
  }
  SimulationResult result;
  result.violation = trace_.violation();
  result.scenario = Describe(scenario_);
  result.trace = trace_.last();
  result.events = queue_.count();
  result.faults = faults_;
  result.seconds = absl::ToDoubleSeconds(queue_.now() - EventQueue().now());
  const RunState* state = coordinator_.state();
  if (state == nullptr && coordinator_.last_state()) state = &*coordinator_.last_state();
  if (state != nullptr) {
    result.failures = state->failures();
    result.generations = state->generation().generation();
    result.records_redone = state->ledger().redone();
    result.coordinator_starts = state->coordinator_starts();
  }
  return result;
}

// ---------------------------------------------------------------- who is there

void World::StartNode() {
  nodes_.push_back({absl::StrCat("n", ++last_node_), {}, true, {}});
  Node* const node = &nodes_.back();
  node->workers.resize(scenario_.processes_per_node);
  for (uint32_t rank = 0; rank < scenario_.processes_per_node; ++rank) StartWorker(node, rank, {});
}

void World::StartWorker(Node* node, uint32_t local_rank, Holding holding) {
  Worker::Surroundings around;
  around.queue = &queue_;
  around.random = &random_;
  around.trace = &trace_;
  around.checker = &checker_;
  around.exchange = &exchange_;
  around.coordinator = &coordinator_;
  around.scenario = &scenario_;
  around.ended = [this](Worker* worker, bool run_over) { Ended(worker, run_over); };
  workers_.push_back(
      std::make_unique<Worker>(around, &node->network, node->id, local_rank, std::move(holding)));
  node->workers[local_rank] = workers_.back().get();
  trace_.Note(workers_.back()->Name(), ": starts");
}

// The agent starts another one, which may get what the former one kept with the agent, perhaps
// without its records.
void World::Died(Worker* worker, absl::Duration back_after) {
  Holding holding;
  if (random_.Chance(50)) holding = worker->vault();
  if (random_.Chance(30)) holding.records.clear();
  for (Node& node : nodes_) {
    if (node.id != worker->node_id()) continue;
    queue_.After(back_after, [this, &node, worker, holding = std::move(holding)] {
      if (node.agent && node.workers[worker->local_rank()] == worker) {
        StartWorker(&node, worker->local_rank(), holding);
      }
    });
  }
}

// The agent ends with its first process that ends by itself.
void World::Ended(Worker* worker, bool) {
  for (Node& node : nodes_) {
    if (node.id != worker->node_id() || !std::exchange(node.agent, false)) continue;
    for (Worker* const other : node.workers) {
      queue_.After(absl::Seconds(5), [other] { other->Kill(/*quietly=*/false); });
    }
  }
}

void World::Exited(int exit_code) {
  const RunState& state = *coordinator_.last_state();
  if (exit_code == 0) {
    over_ = true;
    checker_.OnSuccess(state);
    if (scenario_.only_coordinator_dies && (state.failures() > 0 || state.ledger().redone() > 0)) {
      trace_.Violate("only the coordinator died, but ", state.failures(), " generations broke and ",
                     state.ledger().redone(), " records were redone");
    }
    return;
  }
  if (state.ended() && state.ended()->outcome() == RunEnded::INTERRUPTED) {
    restarting_ = true;
    queue_.After(random_.Milliseconds(100, 3000), [this] {
      restarting_ = false;
      coordinator_.Start();
      StartMissingNodes();
    });
    return;
  }
  over_ = true;
  const MembershipOptions& options = scenario_.membership;
  const bool allowed =
      (options.max_failures >= 0 &&
       state.failures() + failures_told_ > static_cast<uint32_t>(options.max_failures)) ||
      state.fruitless_failures() + failures_told_ >= options.fruitless_limit;
  if (!allowed) {
    trace_.Violate("the run failed: ", state.ended() ? state.ended()->reason() : "");
  }
}

// The operator: starts the coordinator when it is down, and, once all is well, nodes that miss.
void World::Watch() {
  if (!coordinator_.alive() && !restarting_ && !over_) {
    restarting_ = true;
    const bool soon = scenario_.only_coordinator_dies || random_.Chance(60);
    queue_.After(soon ? random_.Milliseconds(10, 800) : random_.Milliseconds(800, 9000), [this] {
      restarting_ = false;
      coordinator_.Start();
      if (healed_ || !random_.Chance(10)) return;
      // Perhaps before its first turn.
      queue_.After(random_.Milliseconds(0, 300), [this] { coordinator_.Crash(); });
    });
  }
  if (healed_) StartMissingNodes();
  queue_.After(kWatchInterval, [this] { Watch(); });
}

void World::StartMissingNodes() {
  for (size_t living = LivingNodes().size(); living < scenario_.nodes; ++living) StartNode();
}

std::vector<Worker*> World::Living() {
  std::vector<Worker*> living;
  for (const auto& worker : workers_) {
    if (!worker->dead()) living.push_back(worker.get());
  }
  return living;
}

std::vector<Node*> World::LivingNodes() {
  std::vector<Node*> living;
  for (Node& node : nodes_) {
    if (node.agent) living.push_back(&node);
  }
  return living;
}

// ---------------------------------------------------------------- what goes wrong

void World::Plan() {
  if (faults_left_ == 0) {
    queue_.After(random_.Milliseconds(0, 6000), [this] { Heal(); });
    return;
  }
  --faults_left_;
  queue_.After(random_.Between(absl::ZeroDuration(), 2 * scenario_.between_faults), [this] {
    Fault();
    Plan();
  });
}

void World::Fault() {
  ++faults_;
  if (scenario_.only_coordinator_dies) {
    if (random_.Chance(50)) return coordinator_.Crash();
    // Not just after one: of a generation formed in that moment nobody has heard, and it is lost.
    return coordinator_.CrashAtCommit(/*before=*/true);
  }
  const std::vector<Worker*> workers = Living();
  const std::vector<Node*> nodes = LivingNodes();
  const uint64_t kind = random_.Below(100);
  if (kind < 35 && !workers.empty()) return FaultOfWorker(workers[random_.Below(workers.size())]);
  if (kind < 60 && !nodes.empty()) return FaultOfNode(nodes[random_.Below(nodes.size())]);
  if (kind < 85) return FaultOfCoordinator();
  FaultOfAll();
}

void World::FaultOfWorker(Worker* worker) {
  switch (random_.Below(5)) {
    case 0:
      worker->Kill(/*quietly=*/false);
      return Died(worker, random_.Milliseconds(50, 2000));
    case 1:
      worker->Hang();
      return queue_.After(random_.Milliseconds(100, 12000), [worker] { worker->Continue(); });
    case 2:
      return worker->BreakConnection();
    case 3:
      ++failures_told_;
      worker->Fail();
      return Died(worker, random_.Milliseconds(50, 2000));
    default:
      return worker->SilenceConnection();
  }
}

void World::FaultOfNode(Node* node) {
  switch (random_.Below(6)) {
    case 0:
      return Cut(node, true, false);
    case 1:
      return Cut(node, false, true);
    case 2:
      return Cut(node, true, true);
    case 3:
      for (Worker* const worker : node->workers) worker->Leave();
      return;
    case 4:
      return StartNode();
    default:
      node->agent = false;
      for (Worker* const worker : node->workers) worker->Kill(/*quietly=*/true);
  }
}

void World::FaultOfCoordinator() {
  switch (random_.Below(5)) {
    case 0:
      return coordinator_.Crash();
    case 1:
      return coordinator_.CrashAtCommit(random_.Chance(50));
    case 2:
      return coordinator_.Hang(random_.Milliseconds(300, 7000));
    case 3:
      trace_.Note("disk: full");
      coordinator_.disk().SetFull(true);
      return queue_.After(random_.Milliseconds(100, 6000), [this] {
        trace_.Note("disk: not full any more");
        coordinator_.disk().SetFull(false);
      });
    default:
      return coordinator_.Interrupt();
  }
}

void World::FaultOfAll() {
  const uint64_t kind = random_.Below(3);
  if (kind == 0) {
    for (Node* const node : LivingNodes()) Cut(node, true, random_.Chance(30));
    return;
  }
  for (Worker* const worker : Living()) {
    worker->Kill(/*quietly=*/false);
    Died(worker, random_.Milliseconds(50, 2000));
  }
  if (kind == 1) coordinator_.Crash();
}

void World::Cut(Node* node, bool from_coordinator, bool from_peers) {
  trace_.Note("network: ", node->id, " is cut off", from_coordinator ? " from the coordinator" : "",
              from_peers ? " from its peers" : "");
  node->network = {from_coordinator, from_peers};
  queue_.After(random_.Milliseconds(100, 9000), [this, node] { Uncut(node); });
}

void World::Uncut(Node* node) {
  if (!node->network.cut_from_coordinator && !node->network.cut_from_peers) return;
  trace_.Note("network: ", node->id, " is whole again");
  node->network = {};
  exchange_.Resume();
  for (const auto& connection : coordinator_.connections()) connection->Resume();
}

void World::Heal() {
  trace_.Note("no more faults from here on");
  healed_ = true;
  deadline_ = queue_.now() + kPatienceForTheEnd;
  coordinator_.disk().SetFull(false);
  for (Node& node : nodes_) Uncut(&node);
  for (Worker* const worker : Living()) worker->Continue();
}

}  // namespace

SimulationResult Simulate(uint64_t seed, Mutation mutation, size_t trace_lines) {
  return World(seed, mutation, trace_lines).Run();
}

std::string Describe(uint64_t seed, const SimulationResult& result) {
  return absl::StrCat(absl::StrJoin(result.trace, "\n"), result.trace.empty() ? "" : "\n", "seed ",
                      seed, " (", result.scenario,
                      "): ", result.violation.empty() ? "all is well" : result.violation, "\n");
}

}  // namespace ringmaster
