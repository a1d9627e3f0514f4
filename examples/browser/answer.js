// Question to answer by the graphs that onnx_export.py writes, as onnx_answer.py does it.
import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web";

const GRAPHS = ["vision", "rationale_encoder", "rationale_decoder", "answer_encoder", "answer_decoder"];

export const letter = (number) => String.fromCharCode(65 + number);
const plain = (text) => (text ?? "").split(/\s+/).filter(Boolean).join(" ");
const ids64 = (ids) => new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);

export class Model {
  static async load(folder, progress = () => {}) {
    const json = async (name) => {
      const reply = await fetch(`${folder}/${name}`);
      if (!reply.ok) throw new Error(`${name}: ${reply.status}`);
      return reply.json();
    };
    const model = new Model();
    const names = ["options.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"];
    const [options, processor, ...tokenizer] = await Promise.all(names.map(json));
    Object.assign(model, { options, processor, tokenizer: new Tokenizer(...tokenizer), graphs: {} });
    for (const [done, name] of GRAPHS.entries()) {
      progress(done, GRAPHS.length);
      model.graphs[name] = await ort.InferenceSession.create(`${folder}/${name}.onnx`);
    }
    return model;
  }

  // {question, choices, context, image: ImageBitmap or null} -> {rationale, answer, index, scores}
  async answer(problem, onText = () => {}) {
    const { eos_token_id: end, decoder_start_token_id: start } = this.options;
    const options = problem.choices.map((choice, number) => `(${letter(number)}) ${choice}`).join(" ");
    const context = plain(problem.context) || "N/A";
    const prefix = plain(`Question: ${problem.question} Context: ${context} Options: ${options}`);
    const images = await this.imageInputs(problem.image);

    const source = [...this.encode(`${prefix} Solution:`), end];
    const encoded = await this.encoder("rationale", source, images);
    let ids = [start];
    while (ids.length <= this.options.max_new_tokens && ids.at(-1) !== end) {
      const logits = await this.decoder("rationale", ids, encoded);
      ids.push(logits.reduce((best, value, token) => (value > logits[best] ? token : best), 0));
      onText(this.text(ids));
    }
    const written = ids.filter((token) => token !== start && token !== end);
    const joined = [...this.encode(prefix), ...written, ...this.options.answer_suffix_ids];
    const read = await this.encoder("answer", joined, images);
    const logits = await this.decoder("answer", [start, ...this.options.option_prefix_ids], read);
    const own = problem.choices.map((_, number) => logits[this.options.option_letter_ids[number]]);
    const powers = own.map((value) => Math.exp(value - Math.max(...own)));
    const scores = powers.map((power) => power / powers.reduce((sum, value) => sum + value));
    const index = scores.indexOf(Math.max(...scores));
    return { rationale: this.text(ids), answer: letter(index), index, scores };
  }

  encode(text) {
    return this.tokenizer.encode(text, { add_special_tokens: false }).ids;
  }

  text(ids) {
    return this.tokenizer.decode(ids, { skip_special_tokens: true }).trim().replace(/^Solution:\s*/, "");
  }

  async encoder(stage, ids, images) {
    const attention_mask = ids64(ids.map(() => 1));
    const output = await this.graphs[`${stage}_encoder`].run({ input_ids: ids64(ids), attention_mask, ...images });
    return { encoder_hidden_states: output.encoder_hidden_states, attention_mask };
  }

  // logits of the token after `ids`
  async decoder(stage, ids, encoded) {
    const { logits } = await this.graphs[`${stage}_decoder`].run({ decoder_input_ids: ids64(ids), ...encoded });
    return logits.data.slice(-logits.dims[2]);
  }

  // features of a picture's patches; no picture is one patch of zeros
  async imageInputs(image) {
    const width = this.options.image_feature_size;
    let features = new ort.Tensor("float32", new Float32Array(width), [1, 1, width]);
    if (image) features = (await this.graphs.vision.run({ pixel_values: this.pixels(image) })).image_features;
    const mask = new ort.Tensor("bool", new Uint8Array(features.dims[1]).fill(1), [1, features.dims[1]]);
    return { image_features: features, image_attention_mask: mask };
  }

  pixels(image) {
    const { size, image_mean: mean, image_std: std } = this.processor.image_processor;
    const area = size.height * size.width;
    const canvas = new OffscreenCanvas(size.width, size.height).getContext("2d");
    canvas.imageSmoothingQuality = "high";
    canvas.drawImage(image, 0, 0, size.width, size.height);
    const { data } = canvas.getImageData(0, 0, size.width, size.height);
    const values = Float32Array.from({ length: 3 * area }, (_, at) => {
      const channel = Math.floor(at / area);
      return (data[4 * (at % area) + channel] / 255 - mean[channel]) / std[channel];
    });
    return new ort.Tensor("float32", values, [1, 3, size.height, size.width]);
  }
}
