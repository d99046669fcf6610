// Planes of pixels: {height, width, data}, with one number for each pixel, row by row.

import { sum } from "./engine.js";

export const plane = (height, width, compute) => {
  const data = new Float32Array(height * width);
  for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i++) data[i] = compute(i, y, x);
  return { height, width, data };
};
export const mapped = ({ height, width, data }, compute) => plane(height, width, (i) => compute(data[i], i));
export const largest = (values) => values.reduce((most, value) => Math.max(most, value), -Infinity);
export const quantile = (values, share) => Float64Array.from(values).sort()[Math.trunc(share * (values.length - 1))];
export const roundHalfToEven = (value) => Math.round(value) - (value % 1 === 0.5 && Math.round(value) % 2);

// Scales a plane, as Pillow and torch do. `filter` gives the weight of a pixel at a distance of at most `reach`.
// `finish` rounds a value, or returns it unchanged.
export function resized(source, height, width, filter, reach, finish) {
  const along = (length, size, value) => {
    const scale = length / size;
    const wide = Math.max(scale, 1);
    return Array.from({ length: size }, (_, place) => {
      const centre = (place + 0.5) * scale;
      const first = Math.max(0, Math.trunc(centre - reach * wide + 0.5));
      const end = Math.min(length, Math.trunc(centre + reach * wide + 0.5));
      const weights = Array.from({ length: end - first }, (__, i) => filter((first + i - centre + 0.5) / wide));
      const total = sum(weights);
      return (at) => finish(weights.reduce((result, weight, i) => result + (weight / total) * value(first + i, at), 0));
    });
  };
  const columns = along(source.width, width, (x, y) => source.data[y * source.width + x]);
  const narrow = plane(source.height, width, (_, y, x) => columns[x](y));
  const rows = along(source.height, height, (y, x) => narrow.data[y * width + x]);
  return plane(height, width, (_, y, x) => rows[y](x));
}
export const box = (distance) => (distance > -0.5 && distance <= 0.5 ? 1 : 0);
export const triangle = (distance) => Math.max(0, 1 - Math.abs(distance));

// Returns a width and a height of at most `side` pixels, in the same proportion.
export function sizeWithin(side, width, height) {
  const scale = Math.min(1, side / Math.max(width, height));
  return [width, height].map((length) => Math.max(1, Math.round(length * scale)));
}

export function frame({ height, width, data }) {
  const column = (x) => Array.from({ length: height }, (_, y) => data[y * width + x]);
  return [...data.subarray(0, width), ...data.subarray(-width), ...column(0), ...column(width - 1)];
}

export function boxOf(mask) {
  let [top, left, bottom, right] = [Infinity, Infinity, 0, 0];
  mapped(mask, (value, i) => {
    if (!value) return;
    const [y, x] = [Math.floor(i / mask.width), i % mask.width];
    [top, left, bottom, right] = [Math.min(top, y), Math.min(left, x), Math.max(bottom, y + 1), Math.max(right, x + 1)];
  });
  return { top, left, height: bottom - top, width: right - left };
}

export const crop = (source, { top, left, height, width }) =>
  plane(height, width, (_, y, x) => source.data[(top + y) * source.width + left + x]);

// Returns the sum of each pixel and its eight neighbours. Outside of the picture, its edges are repeated.
export function sumOfNine(source) {
  const { width, data } = source;
  const rows = mapped(source, (value, i) => (data[i - width] ?? value) + value + (data[i + width] ?? value));
  const left = (i) => rows.data[i % width ? i - 1 : i];
  const right = (i) => rows.data[(i + 1) % width ? i + 1 : i];
  return mapped(rows, (value, i) => left(i) + value + right(i));
}
