// Computes the page's answers in a thread of its own, so that a slow network never delays a stroke.

/* global DATA */
import { compute, unpack } from "./engine.js";
import { imageOf, INK, NoDigit } from "./ink.js";
import { sizeWithin } from "./planes.js";

Object.assign(INK, DATA.ink);
const CONSTANTS = unpack(DATA.constants);
const PHOTO_SIDE = 2048; // larger photos are made this small: a canvas on a phone can't hold more

async function pixelsOf(photo) {
  const bitmap = await createImageBitmap(photo, { colorSpaceConversion: "none" }); // turned as its EXIF tag says
  const [width, height] = sizeWithin(PHOTO_SIDE, bitmap.width, bitmap.height);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return { pixels: context.getImageData(0, 0, width, height), bitmap: context.canvas.transferToImageBitmap() };
}

onmessage = async ({ data: { photo, turn, quick, ...question } }) => {
  const answer = { turn, quick };
  const unreadable = () => {
    answer.problem = `${photo.name} can't be read; expected a picture: PNG, JPEG, WebP, GIF, BMP or AVIF`;
  };
  try {
    const { pixels, bitmap } = photo ? ((await pixelsOf(photo).catch(unreadable)) ?? {}) : question;
    answer.bitmap = bitmap;
    if (pixels) {
      answer.image = imageOf(pixels);
      answer.probabilities = compute(quick ? DATA.quick : DATA.steps, CONSTANTS, answer.image).at(-1).data;
    }
  } catch (error) {
    answer.problem = error instanceof NoDigit ? `No digit: ${error.message}` : `The page failed: ${error}`;
  }
  postMessage(answer, answer.bitmap ? [answer.bitmap] : []);
};
