for (const example of JSON.parse(document.getElementById("examples").textContent)) {
  const box = document.getElementById(example.id);
  for (const [text, isTrained] of example.spans) {
    const part = document.createElement(isTrained ? "mark" : "span");
    part.textContent = text;
    box.append(part);
  }
}
