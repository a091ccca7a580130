// Greedy continuations of an artifact by ONNX Runtime's C++ API, all prompts as one left-padded batch.
//
//   greedy FOLDER COUNT [KERNELS] < prompts
//
// FOLDER holds model.onnx and its weights. Each line of the input is a prompt's token ids; each line of the output is
// their continuation by COUNT tokens, or fewer where the text ends: at any of the end tokens of FOLDER's config.json.
// KERNELS is the library of native operators, if wanted. MinGW's headers lack two annotations that ONNX Runtime's header
// has on Windows: there compile with "-D_Return_type_success_(x)=" and "-D_Frees_ptr_opt_=".
#include <algorithm>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <onnxruntime_cxx_api.h>

namespace {

using Ids = std::vector<int64_t>;

constexpr int64_t kPadding = 0;  // Pythia has no token for padding, and any does where the mask is 0

std::string read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path.string() + ": cannot be read");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The tokens that end a text: `"eos_token_id": 0`, `[0, 199]`, or null for none. A program of more than one use reads
// JSON by a library.
Ids end_tokens(const std::string& config) {
  const std::string key = "\"eos_token_id\"";
  const size_t named = config.find(key);
  if (named == std::string::npos) return {};
  const size_t from = config.find_first_not_of(" \n\r\t:", named + key.size());
  std::string value = config.substr(from, config.find_first_of(config[from] == '[' ? "]" : ",}", from) - from);
  std::replace_if(value.begin(), value.end(), [](char c) { return c < '0' || c > '9'; }, ' ');
  std::istringstream words(value);
  return Ids(std::istream_iterator<int64_t>(words), std::istream_iterator<int64_t>());
}

// The graph with `num_logits_to_keep` as an input, so that a prompt's logits are those of its last token alone: it is a
// constant there. Fields of one number in two messages of protocol buffers, one behind the other, are those of one
// message: this appends ModelProto.graph.input, an int64 without dimensions.
std::string settable(std::string graph) {
  const std::string name = "num_logits_to_keep";
  const std::string input = "\x0a\x12" + name + std::string("\x12\x06\x0a\x04\x08\x07\x12\x00", 8);
  if (graph.find(name) == std::string::npos || graph.find(input) != std::string::npos) return graph;
  return graph + "\x3a\x1e\x5a\x1c" + input;
}

Ort::Value tensor(Ids& values, const Ids& shape) {  // over the caller's memory
  static const Ort::MemoryInfo cpu = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  return Ort::Value::CreateTensor<int64_t>(cpu, values.data(), values.size(), shape.data(), shape.size());
}

class Decoder {
 public:
  Decoder(const Ort::Env& env, const std::filesystem::path& folder, const std::filesystem::path& kernels) {
    Ort::SessionOptions options;
    if (!kernels.empty()) options.RegisterCustomOpsLibrary(kernels.c_str());
    // Of a graph in memory nothing else says where its weights are.
    options.AddConfigEntry("session.model_external_initializers_file_folder_path", folder.string().c_str());
    const std::string graph = settable(read(folder / "model.onnx"));
    session_ = Ort::Session(env, graph.data(), graph.size(), options);
    ends_ = end_tokens(read(folder / "config.json"));

    Ort::AllocatorWithDefaultOptions allocator;
    const std::string past = "past_key_values.";
    for (size_t i = 0; i < session_.GetInputCount(); ++i) {
      const std::string name = session_.GetInputNameAllocated(i, allocator).get();
      keeps_ |= name == "num_logits_to_keep";
      if (name.compare(0, past.size(), past) != 0) continue;
      const Ort::TypeInfo type = session_.GetInputTypeInfo(i);
      const auto info = type.GetTensorTypeAndShapeInfo();
      inputs_.push_back(name);
      outputs_.push_back("present." + name.substr(past.size()));
      cached_.push_back({info.GetElementType(), info.GetShape()});
    }
    for (size_t i = 0; i < session_.GetOutputCount(); ++i) {
      if (session_.GetOutputNameAllocated(i, allocator).get() != std::string("logits")) continue;
      const Ort::TypeInfo type = session_.GetOutputTypeInfo(i);
      vocabulary_ = type.GetTensorTypeAndShapeInfo().GetShape().back();
    }
    if (cached_.empty() || vocabulary_ < 1) throw std::runtime_error("the graph has no cache, or no logits");
  }

  // The continuation of each prompt by up to `count` tokens, the end of the text included.
  std::vector<Ids> generate(const std::vector<Ids>& prompts, int64_t count) {
    const int64_t rows = prompts.size();
    int64_t fresh = 0;  // how many tokens a row the next step reads: the prompts, then one by one
    for (const Ids& prompt : prompts) {
      if (prompt.empty()) throw std::invalid_argument("a prompt without tokens");
      for (const int64_t id : prompt) {
        if (id < 0 || id >= vocabulary_) {
          throw std::invalid_argument("token " + std::to_string(id) + "; the model's vocabulary is 0 to " +
                                      std::to_string(vocabulary_ - 1));
        }
      }
      fresh = std::max<int64_t>(fresh, prompt.size());
    }
    Ids ids(rows * fresh, kPadding), padding(rows);
    for (int64_t row = 0; row < rows; ++row) {
      padding[row] = fresh - prompts[row].size();
      std::copy(prompts[row].begin(), prompts[row].end(), ids.begin() + row * fresh + padding[row]);
    }

    std::vector<Ort::Value> cache = empty_cache(rows);
    std::vector<Ids> found(rows);
    int64_t running = rows;
    for (int64_t past = 0; count > 0 && running > 0; --count) {
      ids = step(ids, padding, past, cache);  // [rows]
      past += std::exchange(fresh, 1);
      for (int64_t row = 0; row < rows; ++row) {
        if (!found[row].empty() && ends(found[row].back())) continue;  // its row goes on; nobody reads it
        found[row].push_back(ids[row]);
        running -= ends(ids[row]);
      }
    }
    return found;
  }

 private:
  bool ends(int64_t id) const { return std::find(ends_.begin(), ends_.end(), id) != ends_.end(); }

  struct Cached {
    ONNXTensorElementDataType type;  // float32, float16 or int8; the scales of int8 are inputs of their own
    Ids shape;                       // [batch, heads, past, head size], the scales' without the last
  };

  std::vector<Ort::Value> empty_cache(int64_t rows) const {
    Ort::AllocatorWithDefaultOptions allocator;
    std::vector<Ort::Value> cache;
    for (auto [type, shape] : cached_) {
      shape[0] = rows;
      shape[2] = 0;
      cache.push_back(Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), type));
    }
    return cache;
  }

  // Append `ids` [rows, any number] to the `past` tokens in the cache; return the likeliest next token of each row.
  Ids step(Ids& ids, const Ids& padding, int64_t past, std::vector<Ort::Value>& cache) {
    const int64_t rows = padding.size(), fresh = ids.size() / rows, total = past + fresh;
    Ids mask, positions;
    for (const int64_t padded : padding) {
      // The mask is of all tokens. A token's position counts the real tokens before it.
      for (int64_t at = 0; at < total; ++at) mask.push_back(at >= padded);
      for (int64_t at = past; at < total; ++at) positions.push_back(std::max<int64_t>(0, at - padded));
    }
    std::vector<const char*> input_names = {"input_ids", "attention_mask", "position_ids"};
    std::vector<const char*> output_names = {"logits"};
    for (const std::string& name : inputs_) input_names.push_back(name.c_str());
    for (const std::string& name : outputs_) output_names.push_back(name.c_str());
    std::vector<Ort::Value> inputs;
    inputs.push_back(tensor(ids, {rows, fresh}));
    inputs.push_back(tensor(mask, {rows, total}));
    inputs.push_back(tensor(positions, {rows, fresh}));
    std::move(cache.begin(), cache.end(), std::back_inserter(inputs));
    Ids one = {1};
    if (keeps_) {
      input_names.push_back("num_logits_to_keep");
      inputs.push_back(tensor(one, {}));
    }

    std::vector<Ort::Value> outputs = session_.Run(Ort::RunOptions(), input_names.data(), inputs.data(), inputs.size(),
                                                   output_names.data(), output_names.size());
    std::move(outputs.begin() + 1, outputs.end(), cache.begin());  // what is present now is past in the next step

    const float* logits = outputs[0].GetTensorData<float>();  // [rows, kept, vocabulary]
    const int64_t kept = outputs[0].GetTensorTypeAndShapeInfo().GetShape()[1];
    Ids next;
    for (int64_t row = 0; row < rows; ++row) {
      logits += (kept - 1) * vocabulary_;  // to those of the row's last token
      next.push_back(std::max_element(logits, logits + vocabulary_) - logits);
      logits += vocabulary_;
    }
    return next;
  }

  Ort::Session session_{nullptr};
  std::vector<std::string> inputs_, outputs_;  // of the cache, in one order
  std::vector<Cached> cached_;
  int64_t vocabulary_ = 0;
  bool keeps_ = false;  // the graph can be told to give the logits of the last token alone
  Ids ends_;
};

}  // namespace

int main(int argc, char** argv) try {
  int64_t count = 0;
  if (argc < 3 || argc > 4 || !(std::istringstream(argv[2]) >> count)) {
    std::cerr << "usage: greedy FOLDER COUNT [KERNELS] < prompts, a line of token ids each\n";
    return 2;
  }
  std::vector<Ids> prompts;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    prompts.emplace_back(std::istream_iterator<int64_t>(words), std::istream_iterator<int64_t>());
    if (!words.eof()) throw std::invalid_argument("not a line of token ids: " + line);
  }
  if (prompts.empty()) throw std::invalid_argument("no prompt on standard input");

  const Ort::Env env(ORT_LOGGING_LEVEL_FATAL);  // errors are thrown as well
  Decoder decoder(env, argv[1], argc == 4 ? argv[3] : "");
  for (const Ids& row : decoder.generate(prompts, count)) {
    for (size_t i = 0; i < row.size(); ++i) std::cout << (i ? " " : "") << row[i];
    std::cout << '\n';
  }
} catch (const std::exception& e) {
  std::cerr << "greedy: " << e.what() << '\n';
  return 1;
}
