for (const box of document.querySelectorAll(".samples")) {
  const slider = box.querySelector("input"), output = box.querySelector("output");
  const pictures = box.querySelectorAll("img");
  if (slider) slider.addEventListener("input", () => {
    pictures.forEach((picture, i) => picture.hidden = i != slider.value);
    output.value = slider.dataset.rounds.split(" ")[slider.value];
    slider.setAttribute("aria-valuetext", "round " + output.value);
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(element => element.open = true));
