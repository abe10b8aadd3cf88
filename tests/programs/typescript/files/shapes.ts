export const NAME: string = "rectangles";
export const area = (width: number, height: number): number => width * height;
