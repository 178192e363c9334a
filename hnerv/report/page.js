"use strict";
// Sliders of runs that show the same frames move together: one compares a frame, not a place on a slider.
const sliders = [...document.querySelectorAll(".slider")].filter((slider) => slider.querySelector("input"));

function show(slider, frame) {
  const shots = [...slider.querySelectorAll(".shot")];
  const place = shots.findIndex((shot) => shot.dataset.frame === frame);
  if (place < 0) return;
  shots.forEach((shot, i) => { shot.hidden = i !== place; });
  slider.querySelector("input").value = place;
  slider.querySelector("output").textContent = frame;
}

for (const slider of sliders) {
  slider.querySelector("input").addEventListener("input", (event) => {
    const frame = slider.querySelectorAll(".shot")[event.target.value].dataset.frame;
    sliders.forEach((each) => show(each, frame));
  });
}
