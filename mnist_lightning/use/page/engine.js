// Computes the steps of graph.py. A tensor is {shape, data}, and its data is a Float32Array.

const count = (shape) => shape.reduce((product, length) => product * length, 1);
const tensor = (shape, compute = () => 0) => ({
  shape,
  data: Float32Array.from({ length: count(shape) }, (_, i) => compute(i)),
});
const pair = (value) => (value.length === 1 ? [value[0], value[0]] : value);

// Broadcasts a tensor to a larger shape. Returns the place in `x.data` for each place of the shape.
function broadcast(x, shape) {
  const added = shape.length - x.shape.length;
  const places = new Int32Array(count(shape));
  for (let axis = added; axis < shape.length; axis++) {
    const [after, step] = [count(shape.slice(axis + 1)), count(x.shape.slice(axis - added + 1))];
    if (x.shape[axis - added] === 1) continue;
    for (let i = 0; i < places.length; i++) places[i] += (Math.floor(i / after) % shape[axis]) * step;
  }
  return places;
}

const pairwise = (compute) => (shape, first, second) => {
  const [a, b] = [first, second].map((x) => (typeof x === "number" ? { shape: [], data: [x] } : x));
  const [i, j] = [broadcast(a, shape), broadcast(b, shape)];
  return tensor(shape, (place) => compute(a.data[i[place]], b.data[j[place]]));
};

const pointwise = (compute) => (shape, x) => ({ shape, data: x.data.map(compute) });

function convolution(
  shape,
  x,
  weight,
  bias,
  strides,
  paddings = [0],
  gaps = [1],
  transposed,
  outputPadding,
  groups = 1,
) {
  const [[down, right], [top, left], [rowGap, columnGap]] = [strides, paddings, gaps].map(pair);
  const [images, outputs, height, width] = shape;
  const [, inputs, rows, columns] = weight.shape;
  const [, channels, tall, wide] = x.shape;
  const area = height * width;
  const result = tensor(shape, (i) => bias?.data[Math.floor(i / area) % outputs] ?? 0);
  weight.data.forEach((factor, index) => {
    const [column, row] = [index % columns, Math.floor(index / columns) % rows];
    const output = Math.floor(index / columns / rows / inputs);
    const input = (Math.floor(index / columns / rows) % inputs) + Math.floor((output * groups) / outputs) * inputs;
    const shift = column * columnGap - left;
    const first = Math.max(0, Math.ceil(-shift / right));
    const end = Math.min(width, Math.floor((wide - 1 - shift) / right) + 1);
    for (let image = 0; image < images; image++) {
      for (let y = 0; y < height; y++) {
        const source = y * down - top + row * rowGap;
        if (source < 0 || source >= tall) continue;
        const from = ((image * channels + input) * tall + source) * wide + shift;
        const to = (image * outputs + output) * area + y * width;
        for (let i = first; i < end; i++) result.data[to + i] += factor * x.data[from + i * right];
      }
    }
  });
  return result;
}

export const sum = (values) => values.reduce((total, value) => total + value, 0);

// Combines the values in each window of a tensor. Windows may reach over its edges.
function pool(combine, shape, x, kernel, strides, paddings = [0], gaps = [1]) {
  const [[rows, columns], [down, right]] = [kernel, strides?.length ? strides : kernel].map(pair);
  const [[top, left], [rowGap, columnGap]] = [paddings, gaps].map(pair);
  const [[height, width], [tall, wide]] = [shape.slice(-2), x.shape.slice(-2)];
  return tensor(shape, (i) => {
    const [y, start] = [(Math.floor(i / width) % height) * down - top, (i % width) * right - left];
    const plane = Math.floor(i / (height * width)) * tall * wide;
    const values = [];
    for (let row = y; row < y + rows * rowGap; row += rowGap) {
      for (let column = start; column < start + columns * columnGap; column += columnGap) {
        const inside = row >= 0 && row < tall && column >= 0 && column < wide;
        if (inside) values.push(x.data[plane + row * wide + column]);
      }
    }
    return combine(values);
  });
}

const FUNCTIONS = {
  convolution,
  add: pairwise((a, b) => a + b),
  sub: pairwise((a, b) => a - b),
  mul: pairwise((a, b) => a * b),
  div: pairwise((a, b) => a / b),
  reshape: pointwise((value) => value),
  relu: pointwise((value) => Math.max(value, 0)),
  sigmoid: pointwise((value) => 1 / (1 + Math.exp(-value))),
  tanh: pointwise(Math.tanh),
  maxPool: (...options) => pool((values) => Math.max(...values), ...options),
  averagePool(shape, x, kernel, strides, paddings, _ceilMode, countPadding = true, divisor = null) {
    const size = divisor ?? (countPadding ? count(pair(kernel)) : null);
    return pool((values) => sum(values) / (size ?? values.length), shape, x, kernel, strides, paddings);
  },
  addmm: (shape, bias, x, weight) => FUNCTIONS.add(shape, bias, FUNCTIONS.matmul(shape, x, weight)),
  matmul(shape, x, weight) {
    const [inputs, outputs] = weight.shape;
    const result = tensor(shape);
    x.data.forEach((factor, i) => {
      const [from, to] = [(i % inputs) * outputs, Math.floor(i / inputs) * outputs];
      for (let output = 0; output < outputs; output++) result.data[to + output] += factor * weight.data[from + output];
    });
    return result;
  },
  mean(shape, x, axes) {
    const has = (axis) => axes.includes(axis) || axes.includes(axis - x.shape.length);
    const places = broadcast({ shape: x.shape.map((length, axis) => (has(axis) ? 1 : length)) }, x.shape);
    const result = tensor(shape);
    x.data.forEach((value, i) => (result.data[places[i]] += (value * result.data.length) / x.data.length));
    return result;
  },
  softmax(shape, x) {
    const most = Math.max(...x.data); // of all values, because there is only one image
    const powers = x.data.map((value) => Math.exp(value - most));
    const total = sum(powers);
    return { shape, data: powers.map((value) => value / total) };
  },
  take(shape, x, indices) {
    const axis = indices.findIndex((index) => index);
    const after = count(shape.slice(axis + 1));
    return tensor(shape, (i) => {
      const [outer, place] = [Math.floor(i / after / shape[axis]), Math.floor(i / after) % shape[axis]];
      return x.data[(outer * x.shape[axis] + indices[axis].data[place]) * after + (i % after)];
    });
  },
};

// Returns all constants of a page, as tensors.
export function unpack({ shapes, values }) {
  const { buffer } = Uint8Array.from(atob(values), (letter) => letter.charCodeAt(0));
  let start = 0;
  return shapes.map((shape) => {
    const data = new Float32Array(buffer, start, count(shape));
    start += data.byteLength;
    return { shape, data };
  });
}

// Returns the results of all steps. An image is 784 numbers in 0..255.
export function compute(steps, constants, image) {
  const results = [];
  const value = (argument) => {
    if (Array.isArray(argument)) return argument.map(value);
    if (argument?.step === -1) return { shape: [1, 28, 28], data: Float32Array.from(image) };
    return results[argument?.step] ?? constants[argument?.constant] ?? argument;
  };
  for (const step of steps) results.push(FUNCTIONS[step.run](step.shape, ...step.arguments.map(value)));
  return results;
}
