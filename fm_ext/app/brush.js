// Strokes are told to Python as { points: [[x, y], ...], radius, erase }, all lengths in widths of the picture.
export default function ({ data, parentElement, setStateValue }) {
  const root = parentElement.querySelector(".brush");
  const canvas = root.querySelector("canvas");
  const width = root.querySelector("input");
  const { erase, undo, clear } = Object.fromEntries([...root.querySelectorAll("button")].map((b) => [b.name, b]));

  if (root.dataset.name !== data.name) { // this function is called again at every run of the page
    root.dataset.name = data.name;
    root.strokes = [...data.strokes];
    root.querySelector("img").src = data.picture;
    root.style.maxWidth = `min(28rem, ${(70 * data.width) / data.height}vh)`;
    canvas.width = data.width;
    canvas.height = data.height;
    draw();
  }

  function draw() {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.strokeStyle = context.fillStyle = data.colour;
    context.lineCap = context.lineJoin = "round";
    for (const { points, radius, erase } of root.strokes) {
      context.globalCompositeOperation = erase ? "destination-out" : "source-over";
      context.lineWidth = 2 * radius * canvas.width;
      context.beginPath();
      const [first, ...others] = points.map((p) => p.map((length) => length * canvas.width));
      context.moveTo(...first);
      for (const point of others.length ? others : [first]) context.lineTo(...point);
      context.stroke();
    }
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.width];
  }

  function tell() {
    draw();
    setStateValue("strokes", [...root.strokes]);
  }

  canvas.onpointerdown = (event) => {
    if (event.button !== 0 || root.current) return; // a second finger does not paint
    canvas.setPointerCapture(event.pointerId);
    root.current = {
      points: [place(event)], radius: width.value / 200, erase: erase.ariaPressed === "true",
    };
    root.strokes.push(root.current);
    draw();
    event.preventDefault();
  };
  canvas.onpointermove = (event) => {
    if (!root.current || !canvas.hasPointerCapture(event.pointerId)) return;
    root.current.points.push(place(event));
    draw();
  };
  canvas.onpointerup = canvas.onpointercancel = (event) => {
    if (!root.current || !canvas.hasPointerCapture(event.pointerId)) return;
    root.current = null;
    tell();
  };
  erase.onclick = () => { erase.ariaPressed = String(erase.ariaPressed !== "true"); };
  undo.onclick = () => { root.strokes.pop(); tell(); };
  clear.onclick = () => { root.strokes = []; tell(); };
}
