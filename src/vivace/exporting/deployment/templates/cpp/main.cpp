// Classify images with ONNX Runtime: raw pixels in, probabilities out; normalisation and softmax are in the graph.
//
//   classify MODEL.onnx IMAGE [CLASSES.txt]    the likeliest classes of an image
//   classify MODEL.onnx --golden FOLDER        compare with the answers in FOLDER; exit status 1 if one is apart
//
// IMAGE: raw uint8 [size, size, channels], or a binary PPM or PGM of that size. Resize as training did: pixels.py does.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace {

constexpr std::size_t kTop = 5;

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("the file can't be read: " + path.string() + ". Check its name and rights.");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

class Classifier {
 public:
  explicit Classifier(const fs::path& model)
      : env_(ORT_LOGGING_LEVEL_ERROR, "classify"), session_(env_, model.c_str(), Ort::SessionOptions{}) {
    // a copy: the shape is read from the type, which must live as long
    const auto type = session_.GetInputTypeInfo(0);
    shape_ = type.GetTensorTypeAndShapeInfo().GetShape();
    if (shape_.size() != 4) throw std::runtime_error("the graph takes no images [N, size, size, channels].");
    shape_[0] = 1;
  }

  std::size_t num_pixels() const { return static_cast<std::size_t>(shape_[1] * shape_[2] * shape_[3]); }

  std::string pixels(const fs::path& path) const {
    std::string data = read_file(path);
    if (data.size() > 1 && data[0] == 'P' && (data[1] == '6' || data[1] == '5')) data = from_ppm(data);
    if (data.size() != num_pixels()) {
      throw std::runtime_error("the image has another size: " + path.string() + " holds " + std::to_string(data.size()) +
                               " values, " + std::to_string(num_pixels()) + " are needed (" + std::to_string(shape_[1]) +
                               " px, " + std::to_string(shape_[3]) + " channels). Resize it with pixels.py.");
    }
    return data;
  }

  std::vector<float> probs(std::string& pixels) {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto input = Ort::Value::CreateTensor<std::uint8_t>(memory, reinterpret_cast<std::uint8_t*>(pixels.data()),
                                                              pixels.size(), shape_.data(), shape_.size());
    const char* inputs[] = {"images"};
    const char* outputs[] = {"probs"};
    const auto answers = session_.Run(Ort::RunOptions{nullptr}, inputs, &input, 1, outputs, 1);
    const float* first = answers[0].GetTensorData<float>();
    return {first, first + answers[0].GetTensorTypeAndShapeInfo().GetElementCount()};
  }

 private:
  // P6 or P5, width, height, 255, one blank, pixels; a # begins a comment
  std::string from_ppm(const std::string& data) const {
    std::size_t at = 2;
    std::int64_t fields[3] = {0, 0, 0};
    for (auto& field : fields) {
      while (at < data.size() && (std::isspace(static_cast<unsigned char>(data[at])) || data[at] == '#')) {
        if (data[at] == '#') {
          while (at < data.size() && data[at] != '\n') ++at;
        } else {
          ++at;
        }
      }
      // larger numbers are no image, and would overflow
      while (at < data.size() && std::isdigit(static_cast<unsigned char>(data[at])) && field < 100000) {
        field = 10 * field + (data[at++] - '0');
      }
    }
    const std::int64_t channels = data[1] == '6' ? 3 : 1;
    if (fields[0] != shape_[2] || fields[1] != shape_[1] || fields[2] != 255 || channels != shape_[3]) {
      throw std::runtime_error("the PPM is " + std::to_string(fields[0]) + " x " + std::to_string(fields[1]) + " with " +
                               std::to_string(channels) + " channels up to " + std::to_string(fields[2]) + "; needed are " +
                               std::to_string(shape_[2]) + " x " + std::to_string(shape_[1]) + " with " +
                               std::to_string(shape_[3]) + " up to 255. Resize it with pixels.py.");
    }
    return data.substr(std::min(at + 1, data.size()));
  }

  Ort::Env env_;
  Ort::Session session_;
  std::vector<std::int64_t> shape_;
};

std::size_t best_of(const std::vector<float>& probs) {
  return static_cast<std::size_t>(std::max_element(probs.begin(), probs.end()) - probs.begin());
}

int check(Classifier& classifier, const fs::path& folder) {
  const double tolerance = std::stod(read_file(folder / "tolerance.txt"));
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".u8") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  int failed = 0;
  for (const auto& file : files) {
    std::string pixels = classifier.pixels(file);
    const auto found = classifier.probs(pixels);
    const std::string bytes = read_file(fs::path(file).replace_extension(".f32"));
    if (bytes.size() != found.size() * sizeof(float)) throw std::runtime_error("the golden has other classes: " + file.string());
    std::vector<float> expected(found.size());
    std::memcpy(expected.data(), bytes.data(), bytes.size());
    double apart = 0;
    bool finite = true;
    for (std::size_t i = 0; i < found.size(); ++i) {
      finite = finite && std::isfinite(found[i]);
      apart = std::max(apart, std::abs(static_cast<double>(found[i]) - expected[i]));
    }
    // where two classes are as likely as each other, which of them comes first is a matter of rounding
    const bool same = expected[best_of(expected)] - expected[best_of(found)] <= tolerance;
    const bool ok = finite && same && apart <= tolerance;
    failed += !ok;
    std::cout << (ok ? "ok     " : "FAILED ") << file.filename().string() << " class " << best_of(found) << " "
              << found[best_of(found)] << ", within " << apart << " (" << tolerance << " is allowed)\n";
  }
  std::cout << (failed || files.empty() ? "FAILED" : "ok") << ": " << files.size() - failed << " of " << files.size()
            << " goldens\n";
  return failed || files.empty() ? 1 : 0;
}

void show(Classifier& classifier, const fs::path& image, const char* classes) {
  std::vector<std::string> names;
  if (classes != nullptr) {
    std::ifstream file(classes);
    for (std::string line; std::getline(file, line);) names.push_back(line);
  }
  std::string pixels = classifier.pixels(image);
  const auto probs = classifier.probs(pixels);
  std::vector<std::size_t> order(probs.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return probs[a] > probs[b]; });
  for (std::size_t rank = 0; rank < std::min(kTop, order.size()); ++rank) {
    const auto index = order[rank];
    std::cout << (index < names.size() ? names[index] : std::to_string(index)) << "\t" << probs[index] << "\n";
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3 || argc > 4) {
    std::cerr << "usage: classify MODEL.onnx IMAGE [CLASSES.txt] | classify MODEL.onnx --golden FOLDER\n";
    return 2;
  }
  try {
    Classifier classifier{fs::path(argv[1])};
    if (std::strcmp(argv[2], "--golden") == 0) return check(classifier, argc == 4 ? argv[3] : "golden");
    show(classifier, argv[2], argc == 4 ? argv[3] : nullptr);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  }
  return 0;
}
