// Turns a picture of a digit into an image in the style of MNIST. ink.py does the same, and explains each step.

import { sum } from "./engine.js";
import { box, boxOf, crop, frame, largest, mapped, plane, quantile, resized } from "./planes.js";
import { roundHalfToEven, sizeWithin, sumOfNine, triangle } from "./planes.js";

export const INK = {}; // the numbers at the head of ink.py, and WORKING_SIDE of photos.py

export class NoDigit extends Error {}

// Returns the planes of red, green, blue and opacity in 0..1, at most INK.WORKING_SIDE pixels wide and high.
function planesOf({ width, height, data }) {
  const [wide, tall] = sizeWithin(INK.WORKING_SIDE, width, height);
  return [0, 1, 2, 3].map((channel) => {
    const whole = plane(height, width, (i) => data[4 * i + channel]);
    const small = tall * wide < height * width ? resized(whole, tall, wide, box, 0.5, Math.round) : whole;
    return mapped(small, (value) => value / 255);
  });
}

// Returns an image, 784 numbers in 0..255, from the pixels of a canvas.
export function imageOf(pixels) {
  const [red, green, blue, opacity] = planesOf(pixels);
  const grey = red.data.every((value, i) => value === green.data[i] && value === blue.data[i]);
  const colours = grey ? [red] : [red, green, blue]; // three equal colours give the same ink as one
  return centre(
    opacity.data.every((value) => value === 1) ? cutOut(ink(colours)) : cutOutTransparent(colours, opacity),
  );
}

function cutOutTransparent(colours, opacity) {
  const most = largest(opacity.data);
  const opaque = mapped(opacity, (value) => (value > most / 2 ? 1 : 0));
  if (most > INK.LEAST_CONTRAST && isPaper(crop(opaque, boxOf(opaque)))) {
    const inside = sumOfNine(opaque);
    const filled = colours.map((colour) => {
      const ofPaper = colour.data.filter((_, i) => opaque.data[i]);
      const paper = quantile(ofPaper, 0.5);
      return mapped(colour, (value, i) => (inside.data[i] > 8.5 ? value : paper));
    });
    try {
      return cutOut(ink(filled));
    } catch (error) {
      if (!(error instanceof NoDigit)) throw error;
      const share = sum(frame(opaque)) / frame(opaque).length;
      if (share > 0.5 && share < 1) throw error;
    }
  }
  return cutOut(ink([opacity]));
}

function isPaper(mask) {
  const side = Math.max(1, roundHalfToEven(INK.PAPER_SQUARE * Math.min(mask.height, mask.width)));
  const wide = mask.width + 1;
  const sums = new Float64Array((mask.height + 1) * wide);
  for (let i = wide + 1; i < sums.length; i++) {
    const [y, x] = [Math.floor(i / wide), i % wide];
    if (x) sums[i] = mask.data[(y - 1) * mask.width + x - 1] + sums[i - 1] + sums[i - wide] - sums[i - wide - 1];
    const square = sums[i] - sums[i - side] - sums[i - side * wide] + sums[i - side * wide - side];
    if (y >= side && x >= side && square > 0.95 * side ** 2) return true;
  }
  return false;
}

function ink(colours) {
  const surfaces = background(colours);
  const distances = colours.map((colour, c) => mapped(colour, (value, i) => value - surfaces[c].data[i]));
  const squares = mapped(colours[0], (_, i) => sum(distances.map(({ data }) => data[i] ** 2)));
  const direction = distances.map(({ data }) => data.reduce((total, value, i) => total + value * squares.data[i], 0));
  const length = Math.max(Math.hypot(...direction), 1e-12) * Math.sqrt(colours.length);
  return mapped(colours[0], (_, i) => sum(distances.map(({ data }, c) => (direction[c] / length) * data[i])));
}

function background(colours) {
  const [{ height, width }] = colours;
  const step = Math.max(1, Math.floor(Math.max(height, width) / INK.COARSE_SIDE));
  const [down, across] = [height, width].map((length) =>
    Array.from({ length }, (_, i) => (2 * i) / Math.max(length - 1, 1) - 1),
  );
  const coarse = (compute) =>
    plane(Math.ceil(height / step), Math.ceil(width / step), (_, y, x) => compute(y * step, x * step)).data;
  const terms = [
    () => 1,
    (y, x) => across[x],
    (y) => down[y],
    (y, x) => across[x] ** 2,
    (y, x) => down[y] * across[x],
    (y) => down[y] ** 2,
  ];
  const a = terms.map(coarse);
  const b = colours.map(({ data }) => coarse((y, x) => data[y * width + x]));
  const points = a[0].length;

  const fit = (start) => {
    const above = b.map((values, c) => Float64Array.from(values, (value) => value - start[c]));
    let [surface, weights] = [b.map(() => [0, 0, 0, 0, 0, 0]), new Float64Array(points)];
    const farthest = () =>
      weights.map((_, i) => {
        let most = 0;
        for (let c = 0; c < b.length; c++) {
          let value = above[c][i];
          for (let k = 0; k < 6; k++) value -= surface[c][k] * a[k][i];
          most = Math.max(most, Math.abs(value));
        }
        return most;
      });
    const product = (first, second) => {
      let total = 0;
      for (let i = 0; i < points; i++) total += weights[i] * first[i] * second[i];
      return total;
    };
    for (let [round, change] = [0, 1]; round < 12 && change >= 1e-4; round++) {
      const distance = farthest();
      const scale = Math.min(Math.max(2.5 * quantile(distance, 0.5), 0.025), 0.3);
      weights = distance.map((value) => (1 - Math.min(value / scale, 1) ** 2) ** 2);
      const matrix = a.map((row, j) => a.map((other, k) => product(row, other) + (j === k ? 1e-3 * points : 0)));
      const before = surface;
      surface = above.map((values) =>
        solved(
          matrix,
          a.map((row) => product(row, values)),
        ),
      );
      const changes = surface.map((fitted, c) => sum(fitted.map((value, k) => Math.abs(value - before[c][k]))));
      change = Math.max(...changes);
    }
    const share = weights.filter((weight) => weight > 0.5).length / points;
    return [surface.map(([level, ...rest], c) => [level + start[c], ...rest]), share];
  };

  const [most, share] = fit(b.map((values) => quantile(values, 0.5)));
  const [around, shareAround] = fit(colours.map((colour) => quantile(frame(colour), 0.5)));
  return (shareAround > 0.7 * share ? around : most).map(([level, right, low, bent, twisted, arched]) =>
    plane(
      height,
      width,
      (_, y, x) =>
        level + low * down[y] + arched * down[y] ** 2 + (right + twisted * down[y] + bent * across[x]) * across[x],
    ),
  );
}

// Solves equations with a symmetric positive matrix, by Gaussian elimination.
function solved(matrix, values) {
  const rows = matrix.map((row, i) => [...row, values[i]]);
  rows.forEach((pivot, k) =>
    rows.forEach((row, i) => {
      const factor = row[k] / pivot[k];
      if (i !== k) pivot.forEach((value, j) => (row[j] -= factor * value));
    }),
  );
  return rows.map((row, i) => row.at(-1) / row[i]);
}

function cutOut(source) {
  const { height, width, data } = source;
  const steps = new Float64Array(2 * data.length - height - width + 1);
  let last = 0;
  for (let i = 0; i < data.length; i++) {
    if (i % width < width - 1) steps[last++] = Math.abs(data[i + 1] - data[i]);
    if (i + width < data.length) steps[last++] = Math.abs(data[i + width] - data[i]);
  }
  const large = Math.max(height, width) > INK.COARSE_SIDE / 2;
  const noise = quantile(steps, 0.25) / 0.45 / (large ? 3 : 1);
  const smooth = large ? mapped(sumOfNine(source), (value) => value / 9) : source;
  const level = largest(smooth.data);
  if (level < Math.max(INK.LEAST_CONTRAST, 6 * noise)) throw new NoDigit("nothing stands out from the background");
  const threshold = Math.max(INK.FAINTEST_STROKE * level, 4 * noise);
  const digit = digitOf(mapped(smooth, (value) => (value > threshold ? 1 : 0)));
  const where = boxOf(digit);
  const near = sumOfNine(crop(digit, where));
  return mapped(crop(source, where), (value, i) => (near.data[i] > 0 ? Math.min(Math.max(value / level, 0), 1) : 0));
}

function digitOf(mask) {
  const step = Math.max(1, Math.floor(Math.max(mask.height, mask.width) / INK.COARSE_SIDE));
  const [tall, wide] = [mask.height, mask.width].map((length) => Math.ceil(length / step));
  const place = (y, x) => Math.floor(y / step) * wide + Math.floor(x / step);
  const pixels = new Int32Array(tall * wide);
  plane(mask.height, mask.width, (i, y, x) => (pixels[place(y, x)] += mask.data[i]));
  const part = new Int32Array(tall * wide).fill(-1);
  const areas = [];
  pixels.forEach((filled, seed) => {
    if (!filled || part[seed] >= 0) return;
    part[seed] = areas.push(0) - 1;
    for (const stack = [seed]; stack.length;) {
      const here = stack.pop();
      areas[part[seed]] += pixels[here];
      const [y, x] = [Math.floor(here / wide), here % wide];
      for (let i = Math.max(0, y - 1); i <= Math.min(tall - 1, y + 1); i++) {
        for (let j = Math.max(0, x - 1); j <= Math.min(wide - 1, x + 1); j++) {
          const next = i * wide + j;
          if (pixels[next] && part[next] < 0) {
            part[next] = part[seed];
            stack.push(next);
          }
        }
      }
    }
  });
  const fine = plane(mask.height, mask.width, (i, y, x) => (mask.data[i] ? part[place(y, x)] + 1 : 0));
  const edges = frame(fine);
  const touching = areas.map(() => 0);
  edges.forEach((number) => number && touching[number - 1]++);
  const others = areas.map((area, i) => (touching[i] <= edges.length / 10 ? area : 0));
  const counted = Math.max(...others) > Math.max(16, mask.data.length / 1000) ? others : areas;
  const least = Math.max(INK.SMALLEST_PART * Math.max(...counted), 1);
  return mapped(fine, (number) => (number && counted[number - 1] >= least ? 1 : 0));
}

function centre(digit) {
  const longest = Math.max(digit.height, digit.width);
  const [height, width] = [digit.height, digit.width].map((length) =>
    Math.max(1, roundHalfToEven((length * INK.BOX) / longest)),
  );
  const small = resized(digit, height, width, triangle, 1, (value) => value);
  const most = largest(small.data);
  const total = sum(small.data);
  const start = (length, position) => {
    const middle = small.data.reduce((result, value, i) => result + value * position(i), 0) / total;
    return Math.min(Math.max(Math.round(INK.CENTRE - middle - INK.TIE), 0), INK.SIZE - length);
  };
  const [top, left] = [start(height, (i) => Math.floor(i / width)), start(width, (i) => i % width)];
  const image = new Uint8ClampedArray(INK.SIZE ** 2);
  small.data.forEach((value, i) => {
    image[(top + Math.floor(i / width)) * INK.SIZE + left + (i % width)] = (255 * value) / most; // rounded
  });
  return image;
}
