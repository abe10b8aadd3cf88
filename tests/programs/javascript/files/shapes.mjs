export const NAME = "rectangles";
export const area = (width, height) => width * height;
