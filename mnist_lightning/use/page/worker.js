// Answers the page from a thread of its own, so that a slow network never holds up a stroke.

/* global DATA */
import { compute, unpack } from "./engine.js";
import { imageOf, INK } from "./ink.js";

Object.assign(INK, DATA.ink);
const CONSTANTS = unpack(DATA.constants);
const PHOTO_SIDE = 2048; // a browser makes larger photos this small, as phones can't give all their pixels

async function pixelsOf(photo) {
  const bitmap = await createImageBitmap(photo); // turned as its EXIF tag says
  const scale = Math.min(1, PHOTO_SIDE / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((length) => Math.max(1, Math.round(length * scale)));
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return { pixels: context.getImageData(0, 0, width, height), bitmap };
}

onmessage = async ({ data: { photo, pixels, quick, turn } }) => {
  const answer = { turn, quick };
  try {
    if (photo) Object.assign(answer, await pixelsOf(photo));
  } catch {
    answer.problem = `${photo.name} can't be read; expected a picture: PNG, JPEG, WebP, GIF, BMP or AVIF`;
  }
  try {
    if (!answer.problem) answer.image = imageOf(answer.pixels ?? pixels);
  } catch (error) {
    answer.problem = `No digit: ${error.message}`;
  }
  if (answer.image)
    answer.probabilities = compute(quick ? DATA.quick : DATA.steps, CONSTANTS, answer.image).at(-1).data;
  delete answer.pixels;
  postMessage(answer);
};
